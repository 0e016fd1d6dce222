// Package metrics counts what the driver does, for Prometheus. Names and labels
// are those of secrets-store-csi-driver where the meaning is the same.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics holds the counters of one driver. It is safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	published, publishErrors     *prometheus.CounterVec
	unpublished, unpublishErrors prometheus.Counter
	refreshed, refreshErrors     *prometheus.CounterVec
	refreshDuration              prometheus.Histogram
}

// osType is the constant label that secrets-store-csi-driver has.
var osType = prometheus.Labels{"os_type": "linux"}

// New returns Metrics in which everything is zero. volumes tells how many
// volumes are published.
func New(volumes func() int) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: osType}, labels)
		m.registry.MustRegister(c)
		return c
	}
	m.published = vec("node_publish_total", "Successful publishes of a volume, kubelet's repetitions included.", "provider")
	m.publishErrors = vec("node_publish_error_total", "Failed publishes of a volume.", "provider", "error_type")
	m.unpublished = vec("node_unpublish_total", "Successful unpublishes of a volume.").WithLabelValues()
	m.unpublishErrors = vec("node_unpublish_error_total", "Failed unpublishes of a volume.").WithLabelValues()
	m.refreshed = vec("rotation_reconcile_total", "Successful refreshes of a volume; rotated tells whether its files changed.", "provider", "rotated")
	m.refreshErrors = vec("rotation_reconcile_error_total", "Failed refreshes of a volume.", "provider", "error_type", "rotated")
	m.refreshDuration = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "rotation_reconcile_duration_sec", Help: "How long a refresh of a volume took, in seconds.", ConstLabels: osType,
		Buckets: []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120},
	})
	m.registry.MustRegister(
		m.refreshDuration,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "csi_secrets_volumes", Help: "Volumes that are published on the node."}, func() float64 { return float64(volumes()) }),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Published counts a publish. errorType is "" for one that succeeded.
func (m *Metrics) Published(provider, errorType string) {
	if errorType == "" {
		m.published.WithLabelValues(provider).Inc()
		return
	}
	m.publishErrors.WithLabelValues(provider, errorType).Inc()
}

// Unpublished counts an unpublish. errorType is "" for one that succeeded.
func (m *Metrics) Unpublished(errorType string) {
	if errorType == "" {
		m.unpublished.Inc()
		return
	}
	m.unpublishErrors.Inc()
}

// Refreshed counts a refresh that took so long. errorType is "" for one that
// succeeded, and changed tells whether the files are others then.
func (m *Metrics) Refreshed(provider, errorType string, changed bool, took time.Duration) {
	m.refreshDuration.Observe(took.Seconds())
	rotated := "false"
	if changed {
		rotated = "true"
	}
	if errorType == "" {
		m.refreshed.WithLabelValues(provider, rotated).Inc()
		return
	}
	m.refreshErrors.WithLabelValues(provider, errorType, rotated).Inc()
}
