package azuretest

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/csi-secrets/csi-secrets/test/cloud"
)

// Queue is one of Azure Storage
// (https://learn.microsoft.com/rest/api/storageservices/operations-on-messages), as
// far as messages are received and deleted.
type Queue struct {
	// URL is where it is.
	URL string

	azure *Azure
	name  string

	mu       sync.Mutex
	readers  []string // clients that may receive and delete
	messages []*message
	sent     int
	code     string // with which all requests fail
}

type message struct {
	id, receipt, text string
	visible           time.Time
	dequeued          int
}

// Queue makes a queue in a storage account of its own, which clients may read.
func (a *Azure) Queue(n *cloud.Net, account, name string, readers ...string) *Queue {
	host := account + ".queue.core.windows.net"
	q := &Queue{URL: "https://" + host + "/" + name, azure: a, name: name, readers: readers}
	n.Handle(host, http.HandlerFunc(q.serve))
	return q
}

// Send puts a message into the queue, as it is to be received.
func (q *Queue) Send(text string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sent++
	q.messages = append(q.messages, &message{id: fmt.Sprintf("00000000-0000-0000-0000-%012d", q.sent), text: text})
}

// Reappear shows messages that were received and not deleted.
func (q *Queue) Reappear() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.messages {
		m.visible = time.Time{}
	}
}

// Left is how many messages nobody has deleted.
func (q *Queue) Left() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.messages)
}

// Fail has all requests fail with a code, none where it is empty.
func (q *Queue) Fail(code string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.code = code
}

// statusOf are the codes with their status
// (https://learn.microsoft.com/rest/api/storageservices/queue-service-error-codes).
var statusOf = map[string]int{
	"InvalidAuthenticationInfo": 401, "AuthorizationPermissionMismatch": 403, "AuthorizationFailure": 403, "QueueNotFound": 404, "MessageNotFound": 404,
	"PopReceiptMismatch": 400, "OutOfRangeQueryParameterValue": 400, "UnsupportedHttpVerb": 405, "ServerBusy": 503,
}

func (q *Queue) serve(w http.ResponseWriter, r *http.Request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	code := q.code
	if code == "" {
		code = q.refuse(r)
	}
	w.Header().Set("x-ms-version", r.Header.Get("x-ms-version"))
	if code == "" {
		code = q.answer(w, r)
	}
	if code == "" {
		return
	}
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("x-ms-error-code", code)
	w.WriteHeader(statusOf[code])
	fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><Error><Code>%s</Code><Message>It is refused. Time:%s</Message></Error>`, code, time.Now().UTC().Format(time.RFC3339))
}

// refuse returns why a request is not served, empty where it is.
func (q *Queue) refuse(r *http.Request) (code string) {
	if version := r.Header.Get("x-ms-version"); version < "2017-11-09" { // the first that takes tokens
		q.azure.t.Errorf("the version of the queue's API is %q", version)
	}
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	q.azure.mu.Lock()
	token := q.azure.tokens[bearer]
	q.azure.mu.Unlock()
	switch {
	case token == nil || token.resource != Storage || !time.Now().Before(token.ends):
		return "InvalidAuthenticationInfo"
	case !slices.Contains(q.readers, token.client.ID):
		return "AuthorizationPermissionMismatch"
	}
	return ""
}

type received struct {
	MessageID       string `xml:"MessageId"`
	InsertionTime   string
	ExpirationTime  string
	PopReceipt      string
	TimeNextVisible string
	DequeueCount    int
	MessageText     string
}

func (q *Queue) answer(w http.ResponseWriter, r *http.Request) (code string) {
	now, query := time.Now(), r.URL.Query()
	id, one := strings.CutPrefix(r.URL.Path, "/"+q.name+"/messages/")
	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/"+q.name+"/messages":
		number, err := strconv.Atoi(query.Get("numofmessages"))
		hidden, hiddenErr := strconv.Atoi(query.Get("visibilitytimeout"))
		if err != nil || hiddenErr != nil || number < 1 || number > 32 || hidden < 1 || hidden > 7*24*3600 {
			return "OutOfRangeQueryParameterValue"
		}
		list := struct {
			XMLName xml.Name   `xml:"QueueMessagesList"`
			All     []received `xml:"QueueMessage"`
		}{}
		for _, m := range q.messages {
			if len(list.All) == number || now.Before(m.visible) {
				continue
			}
			m.dequeued++
			m.visible, m.receipt = now.Add(time.Duration(hidden)*time.Second), fmt.Sprintf("AgAAAAMAAAAAAAAA+%s/%d=", m.id, m.dequeued)
			list.All = append(list.All, received{m.id, now.UTC().Format(http.TimeFormat), now.Add(time.Hour).UTC().Format(http.TimeFormat), m.receipt, m.visible.UTC().Format(http.TimeFormat), m.dequeued, m.text})
		}
		w.Header().Set("Content-Type", "application/xml")
		_, _ = w.Write([]byte(xml.Header))
		_ = xml.NewEncoder(w).Encode(list)
	case r.Method == http.MethodDelete && one:
		at := slices.IndexFunc(q.messages, func(m *message) bool { return m.id == id })
		switch {
		case at < 0:
			return "MessageNotFound"
		case q.messages[at].receipt != query.Get("popreceipt"):
			return "PopReceiptMismatch"
		}
		q.messages = slices.Delete(q.messages, at, at+1)
		w.WriteHeader(http.StatusNoContent)
	case !strings.HasPrefix(r.URL.Path, "/"+q.name+"/"):
		return "QueueNotFound"
	default:
		return "UnsupportedHttpVerb"
	}
	return ""
}
