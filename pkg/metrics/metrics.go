// Package metrics counts what the driver does, for Prometheus. Names and labels
// are those of secrets-store-csi-driver where the meaning is the same.
package metrics

import (
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// definition is a metric, as docs/metrics.md shows it. Help is a sentence.
type definition struct {
	name, kind, help string
	labels           []string
	buckets          []float64 // of a histogram, in seconds
	// upstream says that secrets-store-csi-driver has it, with the constant label
	// os_type.
	upstream bool
}

const (
	counter   = "counter"
	gauge     = "gauge"
	histogram = "histogram"
)

// fromMilliseconds are the buckets of what a store in the process, or one on the
// other side of the world, may take.
var fromMilliseconds = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120}

// ofStore are the labels of what is told of a store.
var ofStore = []string{"provider", "store"}

// ofVolume are the labels of what is told of every volume.
var ofVolume = []string{"namespace", "pod", "secret_provider_class", "provider"}

var (
	published       = definition{name: "node_publish_total", kind: counter, labels: []string{"provider"}, upstream: true, help: "Successful publishes of a volume, kubelet's repetitions included."}
	publishErrors   = definition{name: "node_publish_error_total", kind: counter, labels: []string{"provider", "error_type"}, upstream: true, help: "Failed publishes of a volume. The provider is empty where the class could not be had."}
	unpublished     = definition{name: "node_unpublish_total", kind: counter, upstream: true, help: "Successful unpublishes of a volume."}
	unpublishErrors = definition{name: "node_unpublish_error_total", kind: counter, upstream: true, help: "Failed unpublishes of a volume."}
	refreshed       = definition{name: "rotation_reconcile_total", kind: counter, labels: []string{"provider", "rotated"}, upstream: true, help: "Successful refreshes of a volume. Rotated tells whether its files changed."}
	refreshErrors   = definition{name: "rotation_reconcile_error_total", kind: counter, labels: []string{"provider", "error_type", "rotated"}, upstream: true, help: "Failed refreshes of a volume, which keeps its files."}
	refreshDuration = definition{name: "rotation_reconcile_duration_sec", kind: histogram, buckets: fromMilliseconds, upstream: true, help: "How long a refresh of a volume took, in seconds."}
	fetchDuration   = definition{name: "csi_secrets_provider_request_duration_seconds", kind: histogram, labels: []string{"provider", "error_type"}, buckets: fromMilliseconds, help: "How long a provider took to answer for one volume, in seconds. The error_type is empty where it brought the files."}
	sharedAnswers   = definition{name: "csi_secrets_provider_shared_total", kind: counter, labels: []string{"provider"}, help: "Volumes that were answered by what a provider had brought for another of the same class and identity."}
	sealedStarts    = definition{name: "csi_secrets_sealed_starts_total", kind: counter, labels: []string{"provider"}, help: "Volumes that were mounted with an answer which was kept sealed, as their store gave none."}
	sealedEntries   = definition{name: "csi_secrets_sealed_entries", kind: gauge, help: "Answers that are kept sealed on the node."}
	signals         = definition{name: "csi_secrets_change_signals_total", kind: counter, labels: []string{"result"}, help: "Signals to processes of pods after a change, by result: sent, or failed."}
	notices         = definition{name: "csi_secrets_notices_received_total", kind: counter, labels: []string{"source"}, help: "Messages of known senders that may tell of changes. Of the controller."}
	noticesRefused  = definition{name: "csi_secrets_notices_refused_total", kind: counter, labels: []string{"source", "reason"}, help: "Messages that had no effect, and why (notices.md). Of the controller."}
	restarts        = definition{name: "csi_secrets_restarts_total", kind: counter, labels: []string{"result"}, help: "Restarts of workloads after a change, by result: started, finished, unfinished, or failed. Of the controller."}
	secretsSynced   = definition{name: "sync_k8s_secret_total", kind: counter, labels: []string{"provider"}, upstream: true, help: "Writes of a Secret that is made of mounted files. Finding it as it should be does not count."}
	secretErrors    = definition{name: "csi_secrets_sync_error_total", kind: counter, labels: []string{"provider", "error_type"}, help: "Failed attempts to make a Secret of mounted files."}
	secretDuration  = definition{name: "k8s_secret_duration_sec", kind: histogram, buckets: fromMilliseconds, upstream: true, help: "How long it took to write a Secret that is made of mounted files, or to find it as it should be, in seconds."}
	storeWaiting    = definition{name: "csi_secrets_store_waiting", kind: gauge, labels: ofStore, help: "Fetches that wait for their turn at a store. It is missing where none does."}
	storePaused     = definition{name: "csi_secrets_store_paused_seconds", kind: gauge, labels: ofStore, help: "How long a store that throttles is left alone still, in seconds. It is missing where it is not."}
	storeSilent     = definition{name: "csi_secrets_store_silent_seconds", kind: gauge, labels: ofStore, help: "How long a store has not answered, in seconds, while it is asked by one fetch at a time. It is missing where it answers."}
	healthy         = definition{name: "csi_secrets_provider_healthy", kind: gauge, labels: []string{"provider"}, help: "1 where an external provider answered the last health check, 0 where it did not. It takes --provider-health-check."}
	volumes         = definition{name: "csi_secrets_volumes", kind: gauge, help: "Volumes that are published on the node."}
	age             = definition{name: "csi_secrets_volume_age_seconds", kind: gauge, labels: ofVolume, help: "How long ago the files that a pod has mounted were last known to be current, in seconds."}
	untilRefresh    = definition{name: "csi_secrets_volume_next_refresh_seconds", kind: gauge, labels: ofVolume, help: "How long it is until the next refresh of a pod's files is due, in seconds. It is missing where none is planned."}
	valid           = definition{name: "csi_secrets_volume_valid_seconds", kind: gauge, labels: ofVolume, help: "How long a pod's files are valid still, in seconds: until the first lease or certificate among them ends. Below 0 something has ended. It is missing where nothing ends."}
	releasing       = definition{name: "csi_secrets_releases_pending", kind: gauge, help: "Volumes that are gone and have leases at their store still. They are given back at once where the store answers."}
	failing         = definition{name: "csi_secrets_volume_refresh_failing", kind: gauge, labels: append(ofVolume[:len(ofVolume):len(ofVolume)], "error_type"), help: "1 where the last refresh of a pod's files failed. It is missing where it did not."}
)

// definitions are all metrics, in the order of the manual.
var definitions = []definition{
	published, publishErrors, unpublished, unpublishErrors, refreshed, refreshErrors, refreshDuration,
	fetchDuration, sharedAnswers, sealedStarts, sealedEntries, signals, notices, noticesRefused, restarts, secretsSynced, secretErrors, secretDuration, storeWaiting, storePaused, storeSilent, healthy, volumes, age, untilRefresh, valid, failing, releasing,
}

func (d definition) constant() prometheus.Labels {
	if d.upstream {
		return prometheus.Labels{"os_type": "linux"}
	}
	return nil
}

func (d definition) counters() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: d.name, Help: d.help, ConstLabels: d.constant()}, d.labels)
}

func (d definition) histograms() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: d.name, Help: d.help, ConstLabels: d.constant(), Buckets: d.buckets}, d.labels)
}

func (d definition) desc() *prometheus.Desc {
	return prometheus.NewDesc(d.name, d.help, d.labels, d.constant())
}

// Volume is what is told of one published volume.
type Volume struct {
	Namespace, Pod, Class, Provider string
	// Refreshed is when its files were last known to be current.
	Refreshed time.Time
	// Due is when it is refreshed next, zero for never.
	Due time.Time
	// ValidUntil is when something among its files ends, zero for never.
	ValidUntil time.Time
	// ErrorType is why the last refresh failed, empty where it did not.
	ErrorType string
}

// Store is what is told of a store that makes fetches wait.
type Store struct {
	Provider, Name string
	// Waiting is how many fetches wait for their turn.
	Waiting int
	// Paused is for how long it is left alone still, and Silent for how long it has
	// not answered; zero where it is not so.
	Paused, Silent time.Duration
}

// Node is what is told of the volumes of a node.
type Node struct {
	Stores  []Store  // that make fetches wait
	Volumes []Volume // that are published
	// Releasing is how many that are gone have leases still.
	Releasing int
	// Sealed is how many answers are kept sealed.
	Sealed int
}

// Metrics holds the counters of one driver. It is safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	published, publishErrors, unpublished, unpublishErrors, refreshed, refreshErrors, shared, sealedStarts, signals, notices, noticesRefused, restarts, secretsSynced, secretErrors *prometheus.CounterVec
	refreshDuration, fetchDuration, secretDuration                                                                                                                                  *prometheus.HistogramVec
	healthy                                                                                                                                                                         *prometheus.GaugeVec

	mu      sync.Mutex
	answers map[string]bool // by provider
}

// New returns Metrics in which everything is zero. tell tells of the node's
// volumes, whenever the metrics are asked for.
func New(tell func() Node) *Metrics {
	m := &Metrics{
		registry:  prometheus.NewRegistry(),
		published: published.counters(), publishErrors: publishErrors.counters(),
		unpublished: unpublished.counters(), unpublishErrors: unpublishErrors.counters(),
		refreshed: refreshed.counters(), refreshErrors: refreshErrors.counters(), shared: sharedAnswers.counters(), sealedStarts: sealedStarts.counters(),
		signals: signals.counters(), notices: notices.counters(), noticesRefused: noticesRefused.counters(), restarts: restarts.counters(),
		secretsSynced: secretsSynced.counters(), secretErrors: secretErrors.counters(), secretDuration: secretDuration.histograms(),
		refreshDuration: refreshDuration.histograms(), fetchDuration: fetchDuration.histograms(),
		healthy: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: healthy.name, Help: healthy.help}, healthy.labels),
		answers: map[string]bool{},
	}
	m.registry.MustRegister(
		m.secretsSynced, m.secretErrors, m.secretDuration,
		m.published, m.publishErrors, m.unpublished, m.unpublishErrors, m.refreshed, m.refreshErrors, m.shared, m.sealedStarts, m.signals, m.notices, m.noticesRefused, m.restarts, m.refreshDuration, m.fetchDuration, m.healthy,
		volumeCollector(tell),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	// These have no labels, and are there from the start.
	m.unpublished.WithLabelValues()
	m.unpublishErrors.WithLabelValues()
	m.refreshDuration.WithLabelValues()
	m.secretDuration.WithLabelValues()
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
		m.unpublished.WithLabelValues().Inc()
		return
	}
	m.unpublishErrors.WithLabelValues().Inc()
}

// Refreshed counts a refresh that took so long. errorType is "" for one that
// succeeded, and changed tells whether the files are others then.
func (m *Metrics) Refreshed(provider, errorType string, changed bool, took time.Duration) {
	m.refreshDuration.WithLabelValues().Observe(took.Seconds())
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

// Fetched counts an answer of a provider that took so long. errorType is "" for
// one that brought files.
func (m *Metrics) Fetched(provider, errorType string, took time.Duration) {
	m.fetchDuration.WithLabelValues(provider, errorType).Observe(took.Seconds())
}

// Shared counts a volume that shared an answer.
func (m *Metrics) Shared(provider string) { m.shared.WithLabelValues(provider).Inc() }

// StartedSealed counts a volume that was mounted with a sealed answer.
func (m *Metrics) StartedSealed(provider string) { m.sealedStarts.WithLabelValues(provider).Inc() }

// Signalled counts a signal to a process of a pod, by result.
func (m *Metrics) Signalled(result string) { m.signals.WithLabelValues(result).Inc() }

// Received counts a message that may tell of changes.
func (m *Metrics) Received(source string) { m.notices.WithLabelValues(source).Inc() }

// Refused counts one that had no effect.
func (m *Metrics) Refused(source, reason string) {
	m.noticesRefused.WithLabelValues(source, reason).Inc()
}

// Restart counts a restart of a workload, by result.
func (m *Metrics) Restart(result string) { m.restarts.WithLabelValues(result).Inc() }

// SecretSynced counts an attempt to make a Secret, which took so long. errorType is
// "" for one that succeeded, and wrote tells whether that took a write.
func (m *Metrics) SecretSynced(provider, errorType string, wrote bool, took time.Duration) {
	m.secretDuration.WithLabelValues().Observe(took.Seconds())
	if wrote {
		m.secretsSynced.WithLabelValues(provider).Inc()
	}
	if errorType != "" {
		m.secretErrors.WithLabelValues(provider, errorType).Inc()
	}
}

// Checked notes whether an external provider answered a health check, and
// returns whether that is new.
func (m *Metrics) Checked(provider string, answers bool) (changed bool) {
	value := 0.0
	if answers {
		value = 1
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	before, known := m.answers[provider]
	m.answers[provider] = answers
	m.healthy.WithLabelValues(provider).Set(value)
	return !known || before != answers
}

// volumeCollector tells of volumes as they are when it is asked.
type volumeCollector func() Node

var (
	volumesDesc      = volumes.desc()
	ageDesc          = age.desc()
	untilRefreshDesc = untilRefresh.desc()
	validDesc        = valid.desc()
	failingDesc      = failing.desc()
	releasingDesc    = releasing.desc()
	sealedDesc       = sealedEntries.desc()
	storeWaitingDesc = storeWaiting.desc()
	storePausedDesc  = storePaused.desc()
	storeSilentDesc  = storeSilent.desc()
)

// Describe implements prometheus.Collector.
func (volumeCollector) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{volumesDesc, ageDesc, untilRefreshDesc, validDesc, failingDesc, releasingDesc, sealedDesc, storeWaitingDesc, storePausedDesc, storeSilentDesc} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (tell volumeCollector) Collect(c chan<- prometheus.Metric) {
	now := time.Now()
	node := tell()
	c <- prometheus.MustNewConstMetric(volumesDesc, prometheus.GaugeValue, float64(len(node.Volumes)))
	c <- prometheus.MustNewConstMetric(releasingDesc, prometheus.GaugeValue, float64(node.Releasing))
	c <- prometheus.MustNewConstMetric(sealedDesc, prometheus.GaugeValue, float64(node.Sealed))
	for _, s := range node.Stores {
		for desc, value := range map[*prometheus.Desc]float64{storeWaitingDesc: float64(s.Waiting), storePausedDesc: s.Paused.Seconds(), storeSilentDesc: s.Silent.Seconds()} {
			if value > 0 {
				c <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, s.Provider, s.Name)
			}
		}
	}
	told := map[[4]string]bool{}
	for _, v := range node.Volumes {
		labels := [4]string{v.Namespace, v.Pod, v.Class, v.Provider}
		if told[labels] {
			continue // the pod mounts the class twice: its first volume speaks for both
		}
		told[labels] = true
		c <- prometheus.MustNewConstMetric(ageDesc, prometheus.GaugeValue, now.Sub(v.Refreshed).Seconds(), labels[:]...)
		if !v.Due.IsZero() {
			c <- prometheus.MustNewConstMetric(untilRefreshDesc, prometheus.GaugeValue, max(0, v.Due.Sub(now).Seconds()), labels[:]...)
		}
		if !v.ValidUntil.IsZero() {
			c <- prometheus.MustNewConstMetric(validDesc, prometheus.GaugeValue, v.ValidUntil.Sub(now).Seconds(), labels[:]...)
		}
		if v.ErrorType != "" {
			c <- prometheus.MustNewConstMetric(failingDesc, prometheus.GaugeValue, 1, append(labels[:], v.ErrorType)...)
		}
	}
}
