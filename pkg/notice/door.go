package notice

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync"

	"k8s.io/klog/v2"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
)

// sender is a kind of senders of webhooks.
type sender interface {
	// admit returns a refusal unless the sender of a request is known. Where it
	// returns a function, that is called if the request is to be sent again.
	admit(r *http.Request, body []byte) (again func(), err error)
	// read returns what an authentic body says, and what is answered to it, which
	// is mostly nothing. Its errors may be shown to the sender.
	read(body []byte) (hints []provider.Hint, answer []byte, err error)
}

// refusal is an answer to a request that has no effect. It tells nothing but its
// status.
type refusal struct {
	status int
	reason string
}

func (r *refusal) Error() string { return r.reason }

// door is the http.Handler of webhooks of one kind of senders.
type door struct {
	sender
	source   string
	sink     Sink
	recorder Recorder
	// poisoned is the status for what is authentic and cannot be understood.
	poisoned int

	mu      sync.Mutex
	failing bool // the sink took nothing last
}

func newDoor(source string, sender sender, poisoned int, sink Sink, recorder Recorder) (http.Handler, error) {
	if sink == nil {
		return nil, errors.New("notice: a webhook has no sink")
	}
	if recorder == nil {
		recorder = noRecorder{}
	}
	return &door{sender: sender, source: source, sink: sink, recorder: recorder, poisoned: poisoned}, nil
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var again func()
	body, err := bodyOf(w, r)
	if err == nil {
		again, err = d.admit(r, body)
	}
	var no *refusal
	if errors.As(err, &no) {
		d.recorder.Refused(d.source, no.reason)
		w.WriteHeader(no.status)
		return
	}
	d.recorder.Received(d.source)
	hints, answer, err := d.read(body)
	if err != nil {
		d.recorder.Refused(d.source, reasonMalformed)
		http.Error(w, err.Error(), d.poisoned)
		return
	}
	if len(hints) > 0 {
		err = d.sink(r.Context(), hints)
		d.tell(r.Context(), err)
	}
	switch {
	case err != nil:
		if again != nil {
			again()
		}
		d.recorder.Refused(d.source, reasonSink)
		w.WriteHeader(http.StatusServiceUnavailable)
	case answer != nil:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// bodyOf returns the body of a POST of JSON, or a refusal.
func bodyOf(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return nil, &refusal{http.StatusMethodNotAllowed, reasonRequest}
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" && !strings.HasSuffix(kind, "+json") {
		return nil, &refusal{http.StatusUnsupportedMediaType, reasonRequest}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBytes))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, &refusal{http.StatusRequestEntityTooLarge, reasonSize}
	case err != nil:
		return nil, &refusal{http.StatusBadRequest, reasonRequest}
	}
	return body, nil
}

// tell logs the first failure of the sink, and its end.
func (d *door) tell(ctx context.Context, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err != nil && !d.failing:
		klog.FromContext(ctx).Error(err, "Notices of changes are not taken; their sender is to send them again", "source", d.source)
	case err == nil && d.failing:
		klog.FromContext(ctx).Info("Notices of changes are taken again", "source", d.source)
	}
	d.failing = err != nil
}
