package aws

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	smtypes "github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"

	"github.com/csi-secrets/csi-secrets/pkg/provider"
	awstest "github.com/csi-secrets/csi-secrets/test/aws"
	"github.com/csi-secrets/csi-secrets/test/issuer"
)

func TestTheFilesOfAWSsProvider(t *testing.T) {
	for file, test := range map[string]struct {
		fill func(w *world)
		want string
	}{
		"irsa":         {func(w *world) { w.PutSecret(west, "MySecret", "hunter2") }, "MySecret 0644 \"hunter2\"\n"},
		"pod-identity": {func(w *world) { w.PutSecret(west, "MySecret", "hunter2") }, "MySecret 0644 \"hunter2\"\n"},
		"jmes": {
			func(w *world) {
				w.PutSecret(west, "MySecret", `{"username":"testuser","password":"testpassword","hyphenated-path":"x"}`)
			},
			`MySecret 0600 "{\"username\":\"testuser\",\"password\":\"testpassword\",\"hyphenated-path\":\"x\"}"
MySecretUsername 0600 "testuser"
MySecretPassword 0400 "testpassword"
"hyphenated-alias" 0600 "x"
`,
		},
		"failover": {
			func(w *world) {
				w.PutSecretAs(east, "PrimarySecret", "12345A", "primary")
				w.PutSecretAs(west, "FailoverSecret", "12345A", "other")
			},
			"testArn 0644 \"primary\"\n",
		},
		"mount": {
			func(w *world) {
				w.PutSecret(west, "TestSecret1", "secret1")
				w.PutParameter(west, "TestParm1", "parm1")
				w.PutSecretAs(west, "geheimnis", "ABc123", `{"dbUser": {"username": "SecretsManagerUser"}}`)
				w.PutParameter(west, "feaw", "f")
				w.PutBinary(west, "BinarySecret1", []byte("Binary\x00\xff"))
				w.PutSecret(west, "mypath/TestSecret1", "below")
				w.PutParameter(west, "/mypath/TestParm1", "parm below")
			},
			`TestSecret1 0644 "secret1"
TestParm1 0644 "parm1"
TestSecret2 0644 "{\"dbUser\": {\"username\": \"SecretsManagerUser\"}}"
username 0644 "SecretsManagerUser"
arn:aws:ssm:us-west-2:123456789012:parameter-feaw 0644 "f"
BinarySecret1 0400 "Binary\x00\xff"
mypath-TestSecret1 0644 "below"
-mypath-TestParm1 0644 "parm below"
`,
		},
	} {
		t.Run(file, func(t *testing.T) {
			w := newWorld(t)
			test.fill(w)
			v := w.mount(frontend)
			v.request.Parameters = classFile(t, "testdata/"+file+".yaml")
			if got := v.fetched(); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
			if got := v.fetched(); got != "not modified" {
				t.Errorf("a refresh: got\n%s", got)
			}
		})
	}
}

func TestVersionsLabelsAndTranslation(t *testing.T) {
	w := newWorld(t)
	first := w.PutSecret(west, "a/b", "one")
	w.PutSecret(west, "a/b", "two")
	w.SetStage(west, "a/b", first, "blue")
	for _, value := range []string{"p1", "p2", "p3"} {
		w.PutParameter(west, "/p/q", value)
	}
	w.LabelParameter(west, "/p/q", 2, "blue")
	v := w.mount(frontend, translationKey, "False", objectsKey, `
- {objectName: a/b, objectType: secretsmanager}
- {objectName: a/b, objectType: secretsmanager, objectVersion: `+first+`, objectAlias: by/version}
- {objectName: a/b, objectType: secretsmanager, objectVersionLabel: blue, objectAlias: by/label}
- {objectName: a/b, objectType: secretsmanager, objectAlias: again}
- {objectName: /p/q, objectType: ssmparameter}
- {objectName: /p/q, objectType: ssmparameter, objectVersion: "1", objectAlias: p1}
- {objectName: /p/q, objectType: ssmparameter, objectVersionLabel: blue, objectAlias: p2}
- {objectName: "`+awstest.ParameterARN(west, "/p/q")+`", objectVersionLabel: blue, objectAlias: p-arn}
- {objectName: "`+strings.TrimSuffix(w.SecretARN(west, "a/b"), w.SecretARN(west, "a/b")[len(w.SecretARN(west, "a/b"))-7:])+`", objectAlias: partial}
- {objectName: "`+w.SecretARN(west, "a/b")+`", objectAlias: arn}
`)
	if got, want := v.fetched(), `a/b 0644 "two"
by/version 0644 "one"
by/label 0644 "one"
again 0644 "two"
p/q 0644 "p3"
p1 0644 "p1"
p2 0644 "p2"
p-arn 0644 "p2"
partial 0644 "two"
arn 0644 "two"
`; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// The three spellings of the current secret go in one batch. It does not tell whose
	// the secret is that is asked for by name, nor would one of parameters.
	w.wantCalls("the mount", "1 AssumeRoleWithWebIdentity, 1 BatchGetSecretValue, 2 GetParameters, 3 GetSecretValue")
	if got := v.fetched(); got != "not modified" {
		t.Errorf("got\n%s", got)
	}
	w.wantCalls("a refresh", "1 BatchGetSecretValue, 2 DescribeSecret, 2 GetParameters")
	w.SetStage(west, "a/b", w.PutSecret(west, "a/b", "three"), "blue")
	if got := v.fetched(); !strings.Contains(got, `by/label 0644 "three"`) || !strings.Contains(got, `by/version 0644 "one"`) || !strings.Contains(got, `a/b 0644 "three"`) {
		t.Errorf("after a change:\n%s", got)
	}
	w.wantCalls("a refresh with a change", "1 BatchGetSecretValue, 2 DescribeSecret, 2 GetParameters, 2 GetSecretValue")
}

// The calls of AWS's provider for n secrets: n GetSecretValue at a mount, n
// DescribeSecret at a refresh, and GetSecretValue for each change; for n
// parameters: a tenth of n GetParameters, always. It logs in each time.
func TestCalls(t *testing.T) {
	const in = "1 AssumeRoleWithWebIdentity, "
	withoutBatches := []awstest.Statement{{Action: "secretsmanager:GetSecretValue", Resource: "*"}, {Action: "secretsmanager:DescribeSecret", Resource: "*"}}
	for _, test := range []struct {
		kind                          string
		n                             int
		allow                         []awstest.Statement
		mount, again, refresh, change string
	}{
		{"secretsmanager", 1, nil, in + "1 GetSecretValue", "1 GetSecretValue", "1 DescribeSecret", "1 DescribeSecret, 1 GetSecretValue"},
		{"secretsmanager", 20, nil, in + "1 BatchGetSecretValue", "1 BatchGetSecretValue", "1 BatchGetSecretValue", "1 BatchGetSecretValue"},
		{"secretsmanager", 200, nil, in + "10 BatchGetSecretValue", "10 BatchGetSecretValue", "10 BatchGetSecretValue", "10 BatchGetSecretValue"},
		{"ssmparameter", 1, nil, in + "1 GetParameters", "1 GetParameters", "1 GetParameters", "1 GetParameters"},
		{"ssmparameter", 20, nil, in + "2 GetParameters", "2 GetParameters", "2 GetParameters", "2 GetParameters"},
		{"ssmparameter", 200, nil, in + "20 GetParameters", "20 GetParameters", "20 GetParameters", "20 GetParameters"},
		// The right to read in batches is asked for once.
		{"secretsmanager", 1, withoutBatches, in + "1 GetSecretValue", "1 GetSecretValue", "1 DescribeSecret", "1 DescribeSecret, 1 GetSecretValue"},
		{"secretsmanager", 20, withoutBatches, in + "1 BatchGetSecretValue, 20 GetSecretValue", "20 GetSecretValue", "20 DescribeSecret", "20 DescribeSecret, 1 GetSecretValue"},
		{"secretsmanager", 200, withoutBatches, in + "1 BatchGetSecretValue, 200 GetSecretValue", "200 GetSecretValue", "200 DescribeSecret", "200 DescribeSecret, 1 GetSecretValue"},
	} {
		t.Run(fmt.Sprintf("%d %s, %d rights", test.n, test.kind, len(test.allow)), func(t *testing.T) {
			w := newWorld(t)
			if test.allow != nil {
				w.AddRole(awstest.Role{ARN: appRole, Subjects: []string{frontend.Subject()}, Allow: test.allow})
			}
			put := func(name, value string) { w.PutSecret(west, name, value) }
			if test.kind == "ssmparameter" {
				put = func(name, value string) { w.PutParameter(west, name, value) }
			}
			for i := range test.n {
				put(fmt.Sprintf("x%d", i), "old")
			}
			v := w.mount(frontend, objectsKey, list(test.kind, "x", test.n))
			if got := strings.Count(v.fetched(), "\"old\"\n"); got != test.n {
				t.Errorf("there are %d files", got)
			}
			w.wantCalls("a mount", test.mount)
			w.mount(frontend, objectsKey, list(test.kind, "x", test.n)).fetched()
			w.wantCalls("another mount of the identity", test.again)
			if got := v.fetched(); got != "not modified" {
				t.Errorf("an unchanged refresh: got\n%s", got)
			}
			w.wantCalls("an unchanged refresh", test.refresh)
			put("x0", "new")
			if got := v.fetched(); strings.Count(got, "\"old\"\n") != test.n-1 || !strings.Contains(got, "x0 0644 \"new\"\n") {
				t.Errorf("a refresh with a change: got\n%s", got)
			}
			w.wantCalls("a refresh with one change", test.change)
			if got := v.fetched(); got != "not modified" {
				t.Errorf("after the change: got\n%s", got)
			}
		})
	}
}

func TestAFileThatWentIsReadAgain(t *testing.T) {
	w := newWorld(t)
	w.AddRole(awstest.Role{ARN: appRole, Subjects: []string{frontend.Subject()}, Allow: []awstest.Statement{{Action: "secretsmanager:GetSecretValue", Resource: "*"}, {Action: "secretsmanager:DescribeSecret", Resource: "*"}}})
	w.PutSecret(west, "a", `{"k":"one"}`)
	w.PutSecret(west, "b", "two")
	v := w.mount(frontend, objectsKey, "- {objectName: a, objectType: secretsmanager, jmesPath: [{path: k, objectAlias: k}]}\n- {objectName: b, objectType: secretsmanager}")
	want := v.fetched()
	w.calls()
	delete(v.files, "k")
	w.PutSecret(west, "b", "three")
	if got := v.fetched(); got != strings.Replace(want, "two", "three", 1) {
		t.Errorf("got\n%s", got)
	}
	w.wantCalls("it", "2 DescribeSecret, 2 GetSecretValue")
}

func TestOneLoginForAllVolumesOfAnIdentity(t *testing.T) {
	w := newWorld(t)
	w.PutSecret(west, "db", "x")
	const objects = "- {objectName: db, objectType: secretsmanager}"
	other := frontend
	other.Pod, other.PodUID = "web-2", "p2"
	for name, test := range map[string]struct {
		parameters []string
		logins     string
	}{
		// STS looks at the service account, EKS Pod Identity at the pod too.
		"IRSA":         {nil, "1 AssumeRoleWithWebIdentity, 40 GetSecretValue"},
		"pod identity": {[]string{podIdentityKey, "true"}, "2 Agent, 40 GetSecretValue"},
	} {
		w.Provider = w.provider()
		var all sync.WaitGroup
		for range 20 {
			for _, account := range []issuer.Account{frontend, other} {
				v := w.mount(account, append(test.parameters, objectsKey, objects)...)
				all.Go(func() {
					if _, err := v.fetch(); err != nil {
						t.Error(err)
					}
				})
			}
		}
		all.Wait()
		w.wantCalls(name, test.logins)
	}
}

func TestNothingIsServedToAnotherIdentity(t *testing.T) {
	w := newWorld(t)
	w.PutSecret(west, "db", canary)
	const objects = "- {objectName: db, objectType: secretsmanager}"
	if _, err := w.mount(frontend, objectsKey, objects).fetch(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.mount(frontend, podIdentityKey, "true", objectsKey, objects).fetch(); err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(a *issuer.Account){
		func(a *issuer.Account) { a.Name = "other" },
		func(a *issuer.Account) { a.Namespace = "other" },
	} {
		account := frontend
		change(&account)
		w.roles[account.Name] = appRole
		_, err := w.mount(account, objectsKey, objects).fetch()
		wantError(t, err, provider.Denied, "AccessDenied", "trust policy", account.Subject())
		_, err = w.mount(account, podIdentityKey, "true", objectsKey, objects).fetch()
		wantError(t, err, provider.Denied, "ResourceNotFoundException", "create-pod-identity-association")
	}
	// A service account that was made anew under the same name logs in by itself.
	again := frontend
	again.UID = "s2"
	w.calls()
	w.mount(again, objectsKey, objects).fetched()
	w.wantCalls("a new account of the same name", "1 AssumeRoleWithWebIdentity, 1 GetSecretValue")
	// So does an account whose role was changed.
	w.roles["web"] = "arn:aws:iam::123456789012:role/none"
	_, err := w.mount(frontend, objectsKey, objects).fetch()
	wantError(t, err, provider.Denied, "role/none")
}

func TestSessionsThatAreOver(t *testing.T) {
	for name, parameters := range map[string][]string{"IRSA": nil, "pod identity": {podIdentityKey, "true"}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.PutSecret(west, "db", "x")
			w.PutParameter(west, "p", "y")
			v := w.mount(frontend, append(parameters, objectsKey, "- {objectName: db, objectType: secretsmanager}\n- {objectName: p, objectType: ssmparameter}")...)
			v.fetched()
			w.EndSessions()
			w.PutSecret(west, "db", "z")
			if got := v.fetched(); got != "db 0644 \"z\"\np 0644 \"y\"\n" {
				t.Errorf("got\n%s", got)
			}
		})
	}
	w := newWorld(t)
	w.PutSecret(west, "db", "x")
	for range 2 {
		w.Fail(west, "GetSecretValue", awstest.Failure{Code: "ExpiredTokenException", Message: "The security token included in the request is expired"})
	}
	_, err := w.mount(frontend, objectsKey, "- {objectName: db, objectType: secretsmanager}").fetch()
	wantError(t, err, provider.Denied, `secret "db"`, "credentials are not accepted", "ExpiredTokenException")
	w.wantCalls("it", "2 AssumeRoleWithWebIdentity, 2 GetSecretValue")
}

func TestErrors(t *testing.T) {
	secretDB, secretTwo := "- {objectName: db, objectType: secretsmanager}", "- {objectName: db, objectType: secretsmanager}\n- {objectName: other, objectType: secretsmanager}"
	parameterDB := "- {objectName: db, objectType: ssmparameter}"
	for name, test := range map[string]struct {
		objects   string
		operation string
		failure   awstest.Failure
		kind      provider.Kind
		words     []string
		calls     string
	}{
		"throttled":                     {secretDB, "GetSecretValue", awstest.Failure{Code: "ThrottlingException", Message: "Rate exceeded"}, provider.Throttled, []string{"Rate exceeded"}, "1 GetSecretValue"},
		"throttled, with a wait":        {secretDB, "GetSecretValue", awstest.Failure{Code: "ThrottlingException", Message: "Rate exceeded", RetryAfter: 7}, provider.Throttled, []string{`secret "db"`}, "1 GetSecretValue"},
		"a fault in a batch":            {secretTwo, "BatchGetSecretValue", awstest.Failure{Code: "InternalServiceError", Message: canary}, provider.Unavailable, []string{"read 2 secrets in us-west-2"}, "2 BatchGetSecretValue"},
		"throttled, by status":          {parameterDB, "GetParameters", awstest.Failure{Code: "Weird", Status: 429}, provider.Throttled, []string{"429"}, "1 GetParameters"},
		"throttled parameters":          {parameterDB, "GetParameters", awstest.Failure{Code: "ThrottlingException", Message: "Rate exceeded", RetryAfter: 7}, provider.Throttled, []string{`parameter "db"`}, "1 GetParameters"},
		"slow down with 503":            {secretDB, "GetSecretValue", awstest.Failure{Code: "SlowDown", Status: 503}, provider.Throttled, nil, "1 GetSecretValue"},
		"forbidden":                     {secretDB, "GetSecretValue", awstest.Failure{Code: "AccessDeniedException", Message: "User: u is not authorized to perform: secretsmanager:GetSecretValue on resource: r"}, provider.Denied, []string{`secret "db"`, "secretsmanager:GetSecretValue on resource: r", "policy"}, "1 GetSecretValue"},
		"forbidden parameters":          {parameterDB, "GetParameters", awstest.Failure{Code: "AccessDeniedException", Message: "not authorized to perform: ssm:GetParameters on resource: r"}, provider.Denied, []string{"ssm:GetParameters on resource: r"}, "1 GetParameters"},
		"a KMS key that is not allowed": {secretDB, "GetSecretValue", awstest.Failure{Code: "DecryptionFailure", Message: "Secrets Manager can't decrypt the protected secret text using the provided KMS key."}, provider.Denied, []string{"kms:Decrypt"}, "1 GetSecretValue"},
		"a KMS key of a parameter":      {parameterDB, "GetParameters", awstest.Failure{Code: "InvalidKeyId", Message: "The query key ID isn't valid."}, provider.Denied, []string{"kms:Decrypt"}, "1 GetParameters"},
		"a fault":                       {secretDB, "GetSecretValue", awstest.Failure{Code: "InternalServiceError", Message: canary}, provider.Unavailable, []string{"500 InternalServiceError"}, "2 GetSecretValue"},
		"an unknown code":               {secretDB, "GetSecretValue", awstest.Failure{Code: "Weird", Message: canary}, provider.Internal, []string{"400 Weird"}, "1 GetSecretValue"},
		"an unknown version":            {secretDB, "GetSecretValue", awstest.Failure{Code: "ValidationException", Message: canary}, provider.Invalid, nil, "1 GetSecretValue"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.PutSecret(west, "db", canary)
			w.PutSecret(west, "other", canary)
			w.PutParameter(west, "db", canary)
			w.Fail(west, test.operation, test.failure, test.failure)
			_, err := w.mount(frontend, objectsKey, test.objects).fetch()
			wantError(t, err, test.kind, test.words...)
			w.wantCalls("it", "1 AssumeRoleWithWebIdentity, "+test.calls)
			var failure *provider.Error
			if !errors.As(err, &failure) || failure.Code != test.failure.Code || failure.RetryAfter != time.Duration(test.failure.RetryAfter)*time.Second {
				t.Errorf("got %#v", failure)
			}
		})
	}
}

// Batches have a quota of their own, a hundredth of that of single calls.
func TestThrottledBatchesAreReadOneByOneForAnHour(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"db", "other"} {
		w.PutSecret(west, name, "x")
	}
	w.Fail(west, "BatchGetSecretValue", awstest.Failure{Code: "ThrottlingException", Message: "Rate exceeded"})
	v := w.mount(frontend, objectsKey, "- {objectName: db, objectType: secretsmanager}\n- {objectName: other, objectType: secretsmanager}")
	if _, err := v.fetch(); err != nil {
		t.Fatal(err)
	}
	w.wantCalls("the first mount", "1 AssumeRoleWithWebIdentity, 1 BatchGetSecretValue, 2 GetSecretValue")
	if got := v.fetched(); got != "not modified" {
		t.Errorf("a refresh: %s", got)
	}
	w.wantCalls("a refresh", "2 DescribeSecret")
}

func TestWhatIsNotThere(t *testing.T) {
	w := newWorld(t)
	w.PutSecret(west, "there", `{"a":"b"}`)
	w.PutSecret(west, "deleted", canary)
	w.DeleteSecret(west, "deleted")
	w.PutSecret(west, "odd", `{"a":"\ud800"}`)
	w.PutParameter(west, "there", "x")
	for name, test := range map[string]struct {
		object string
		kind   provider.Kind
		words  []string
	}{
		"a secret":              {"objectName: none, objectType: secretsmanager", provider.NotFound, []string{`secret "none"`, "ResourceNotFoundException"}},
		"a deleted secret":      {"objectName: deleted, objectType: secretsmanager", provider.NotFound, []string{"marked for deletion", "restore-secret"}},
		"a label":               {"objectName: there, objectType: secretsmanager, objectVersionLabel: blue", provider.NotFound, []string{"blue"}},
		"a version":             {"objectName: there, objectType: secretsmanager, objectVersion: " + strings.Repeat("x", 32), provider.NotFound, nil},
		"a parameter":           {"objectName: none, objectType: ssmparameter", provider.NotFound, []string{`parameter "none"`, "there is no such parameter"}},
		"a parameter's version": {"objectName: there, objectType: ssmparameter, objectVersion: '9'", provider.NotFound, []string{`no version "9"`}},
		"a JMESPath":            {"objectName: there, objectType: secretsmanager, jmesPath: [{path: none, objectAlias: x}]", provider.NotFound, []string{`nothing at "none"`}},
		"no JSON":               {"objectName: there, objectType: ssmparameter, jmesPath: [{path: none, objectAlias: x}]", provider.Invalid, []string{"it is not JSON"}},
		"no text":               {"objectName: there, objectType: secretsmanager, jmesPath: [{path: '@', objectAlias: x}]", provider.Invalid, []string{"is not a text"}},
		"no Unicode":            {"objectName: odd, objectType: secretsmanager, jmesPath: [{path: a, objectAlias: x}]", provider.Invalid, []string{"is not Unicode text"}},
		"no function":           {"objectName: there, objectType: secretsmanager, jmesPath: [{path: 'length(none)', objectAlias: x}]", provider.Invalid, []string{"cannot be applied"}},
	} {
		_, err := w.mount(frontend, objectsKey, "- {"+test.object+"}").fetch()
		if provider.KindOf(err) != test.kind {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		wantError(t, err, test.kind, test.words...)
		v := w.mount(frontend, objectsKey, "- {"+test.object+", optional: true}\n- {objectName: there, objectType: ssmparameter, objectAlias: always}")
		switch r, err := v.fetch(); {
		case test.kind != provider.NotFound && err == nil:
			t.Errorf("%s, optional: no error", name)
		case test.kind == provider.NotFound && (err != nil || r.Files[len(r.Files)-1].Path != "always"):
			t.Errorf("%s, optional: got %v, %v", name, shown(r), err)
		case test.kind == provider.NotFound && v.fetched() != "not modified":
			t.Errorf("%s, optional: a refresh finds something new", name)
		}
	}
}

// An optional secret that appears, and goes.
func TestOptionalSecretsComeAndGo(t *testing.T) {
	w := newWorld(t)
	w.PutSecret(west, "a", "x")
	v := w.mount(frontend, objectsKey, "- {objectName: a, objectType: secretsmanager}\n- {objectName: b, objectType: secretsmanager, optional: true, extractJSONKey: k}")
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() {}, "a 0644 \"x\"\n"},
		{func() { w.PutSecret(west, "b", `{}`) }, "not modified"},
		{func() { w.PutSecret(west, "b", `{"k":"v"}`) }, "a 0644 \"x\"\nb 0644 \"v\"\n"},
		{func() {}, "not modified"},
		{func() { w.RemoveSecret(west, "b") }, "a 0644 \"x\"\n"},
	} {
		step.do()
		if got := v.fetched(); got != step.want {
			t.Errorf("got\n%s\nwant\n%s", got, step.want)
		}
	}
}

func TestPartsOfABatchThatFail(t *testing.T) {
	w := newWorld(t)
	for i := range 30 {
		w.PutSecret(west, fmt.Sprintf("x%d", i), "v")
	}
	w.DeleteSecret(west, "x3")
	w.RemoveSecret(west, "x25")
	w.AddRole(awstest.Role{ARN: appRole, Subjects: []string{frontend.Subject()}, Allow: []awstest.Statement{
		{Action: "secretsmanager:BatchGetSecretValue", Resource: "*"}, {Action: "*", Resource: "*:secret:x1*"}, {Action: "*", Resource: "*:secret:x2*"},
		{Action: "*", Resource: "*:secret:x3-*"}, {Action: "*", Resource: "x25"},
	}})
	_, err := w.mount(frontend, objectsKey, list("secretsmanager", "x", 30)).fetch()
	wantError(t, err, provider.Denied, "is not authorized to perform: secretsmanager:GetSecretValue on resource: arn:aws:secretsmanager:us-west-2:123456789012:secret:x0-", `secret "x3": read it in us-west-2: InvalidRequestException`, "and 1 more")
	w.wantCalls("it", "1 AssumeRoleWithWebIdentity, 2 BatchGetSecretValue")
	w.AddRole(awstest.Role{ARN: appRole, Subjects: []string{frontend.Subject()}, Allow: awstest.Everything})
	_, err = w.mount(frontend, objectsKey, list("secretsmanager", "x", 30)).fetch()
	wantError(t, err, provider.NotFound, `secret "x3"`, "marked for deletion", `secret "x25"`)
}

// A secret of another account, which has the name of one's own.
func TestANameIsOfTheOwnAccount(t *testing.T) {
	text := func(s string) *string { return &s }
	const own, other = "arn:aws:secretsmanager:us-west-2:111111111111:secret:db-ABCdef", "arn:aws:secretsmanager:us-west-2:222222222222:secret:db-ABCdef"
	byName, byARN := ref{service: secretsManager, name: "db"}, ref{service: secretsManager, name: other}
	values := []smtypes.SecretValueEntry{{ARN: text(other), Name: text("db"), SecretString: text("theirs")}}
	if got := byName.among(values, []ref{byName, byARN}); got != nil {
		t.Errorf("got %s", *got.ARN)
	}
	values = append(values, smtypes.SecretValueEntry{ARN: text(own), Name: text("db"), SecretString: text("ours")})
	for want, r := range map[string]ref{own: byName, other: byARN} {
		if got := r.among(values, []ref{byName, byARN}); got == nil || *got.ARN != want {
			t.Errorf("%s: got %v", r, got)
		}
	}
}

func TestPagesOfABatchAreFollowed(t *testing.T) {
	w := newWorld(t)
	for i := range 20 {
		w.PutSecret(west, fmt.Sprintf("x%d", i), fmt.Sprint(i))
	}
	w.SetPage(7)
	if got := strings.Count(w.mount(frontend, objectsKey, list("secretsmanager", "x", 20)).fetched(), "\n"); got != 20 {
		t.Errorf("there are %d files", got)
	}
	w.wantCalls("it", "1 AssumeRoleWithWebIdentity, 3 BatchGetSecretValue")
}

func TestAClockThatIsOff(t *testing.T) {
	for _, skew := range []time.Duration{time.Hour, -time.Hour} {
		w := newWorld(t)
		w.PutSecret(west, "db", "x")
		w.PutParameter(west, "p", "y")
		w.SetSkew(skew)
		v := w.mount(frontend, objectsKey, "- {objectName: db, objectType: secretsmanager}\n- {objectName: p, objectType: ssmparameter}")
		if got := v.fetched(); got != "db 0644 \"x\"\np 0644 \"y\"\n" {
			t.Errorf("got\n%s", got)
		}
		// One call each finds out; the session is good for its hour all the same.
		w.wantCalls("the first", "1 AssumeRoleWithWebIdentity, 2 GetParameters, 2 GetSecretValue")
		v.fetched()
		w.wantCalls("the second", "1 DescribeSecret, 1 GetParameters")
	}
	w := newWorld(t)
	w.PutSecret(west, "db", "x")
	bad := awstest.Failure{Code: "InvalidSignatureException", Message: "The Canonical String for this request should have been " + canary}
	w.Fail(west, "GetSecretValue", bad, bad)
	_, err := w.mount(frontend, objectsKey, "- {objectName: db, objectType: secretsmanager}").fetch()
	wantError(t, err, provider.Denied, "InvalidSignatureException", "clock")
}

func TestConnectionsThatBreak(t *testing.T) {
	w := newWorld(t)
	w.PutSecret(west, "db", "x")
	const objects = "- {objectName: db, objectType: secretsmanager}"
	w.net.Cut("sts.us-west-2.amazonaws.com", 1)
	w.net.Cut("secretsmanager.us-west-2.amazonaws.com", 1)
	if got := w.mount(frontend, objectsKey, objects).fetched(); got != "db 0644 \"x\"\n" {
		t.Errorf("got %s", got)
	}
	w.Provider = w.provider()
	w.net.Cut("secretsmanager.us-west-2.amazonaws.com", 9)
	_, err := w.mount(frontend, objectsKey, objects).fetch()
	wantError(t, err, provider.Unavailable, `secret "db"`, "there is no answer")
	w.net.Cut("sts.us-west-2.amazonaws.com", 9)
	w.Provider = w.provider()
	_, err = w.mount(frontend, objectsKey, objects).fetch()
	wantError(t, err, provider.Unavailable, "assume the role", "there is no answer")
	w.net.Cut("sts.us-west-2.amazonaws.com", 0)
	w.Provider = w.provider(func(c *Config) { c.CAs = nil })
	_, err = w.mount(frontend, objectsKey, objects).fetch()
	wantError(t, err, provider.Unavailable, "certificate is not trusted", "give the driver")
	w.Provider = w.provider(func(c *Config) { c.Region = "eu-west-1" })
	_, err = w.mount(frontend, objectsKey, objects).fetch()
	wantError(t, err, provider.Unavailable, "sts.eu-west-1.amazonaws.com")
}

func TestDeadlinesAreKept(t *testing.T) {
	w := newWorld(t)
	w.PutSecret(west, "db", "x")
	w.Delay(time.Hour)
	v := w.mount(frontend, objectsKey, "- {objectName: db, objectType: secretsmanager}")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := w.Fetch(ctx, v.request); provider.KindOf(err) != provider.Unavailable {
		t.Errorf("got %v", err)
	}
}

func TestTheTokenServiceRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		failure awstest.Failure
		kind    provider.Kind
		words   []string
	}{
		"no provider":     {awstest.Failure{Code: "InvalidIdentityToken", Message: "No OpenIDConnect provider found in your account for https://x"}, provider.Denied, []string{"https://x", "IAM OIDC provider"}},
		"trust":           {awstest.Failure{Code: "AccessDenied", Message: "Not authorized to perform sts:AssumeRoleWithWebIdentity", Status: 403}, provider.Denied, []string{"trust policy", appRole, "system:serviceaccount:shop:web"}},
		"rejected":        {awstest.Failure{Code: "IDPRejectedClaim", Message: "no"}, provider.Denied, nil},
		"over":            {awstest.Failure{Code: "ExpiredTokenException", Message: "Token expired"}, provider.Unavailable, []string{"kubelet's next call"}},
		"keys unread":     {awstest.Failure{Code: "IDPCommunicationError", Message: "timed out"}, provider.Unavailable, []string{"keys of the cluster's issuer"}},
		"throttled":       {awstest.Failure{Code: "Throttling", Message: "Rate exceeded", RetryAfter: 3}, provider.Throttled, nil},
		"down":            {awstest.Failure{Code: "ServiceUnavailable", Status: 503}, provider.Unavailable, []string{"503"}},
		"a quoting error": {awstest.Failure{Code: "ValidationError", Message: canary}, provider.Invalid, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.PutSecret(west, "db", "x")
			v := w.mount(frontend, objectsKey, "- {objectName: db, objectType: secretsmanager}")
			test.failure.Message += " " + string(v.request.Tokens[irsaAudience].Value.Reveal()) // as a careless server does
			w.Fail(west, "AssumeRoleWithWebIdentity", test.failure)
			if name == "down" || name == "keys unread" { // which are tried once more
				w.Fail(west, "AssumeRoleWithWebIdentity", test.failure)
			}
			_, err := v.fetch()
			wantError(t, err, test.kind, append(test.words, "assume the role")...)
			if got := v.fetched(); got != "db 0644 \"x\"\n" {
				t.Errorf("afterwards: got %s", got)
			}
		})
	}
}

func TestWhoThePodIsMustBeKnown(t *testing.T) {
	w := newWorld(t)
	w.PutSecret(west, "db", "x")
	mount := func() *volume { return w.mount(frontend, objectsKey, "- {objectName: db, objectType: secretsmanager}") }
	v := mount()
	v.request.AccountAnnotations = nil
	_, err := v.fetch()
	wantError(t, err, provider.Denied, "may not read service accounts")
	v.request.AccountAnnotations = func(context.Context) (map[string]string, error) {
		return nil, &provider.Error{Kind: provider.Unavailable, Err: errors.New("the API server is away")}
	}
	_, err = v.fetch()
	wantError(t, err, provider.Unavailable, "the API server is away")
	for annotation, kind := range map[string]provider.Kind{"": provider.Denied, "app": provider.Invalid, "arn:aws:iam::123456789012:user/x": provider.Invalid} {
		w.roles["web"] = annotation
		_, err := mount().fetch()
		wantError(t, err, kind, `service account "web" of the namespace "shop"`, roleAnnotation)
	}
	w.roles["web"] = appRole
	v = mount()
	delete(v.request.Tokens, irsaAudience)
	_, err = v.fetch()
	wantError(t, err, provider.Denied, irsaAudience, "tokenRequests")
	v.setToken(irsaAudience, "no-token-at-all")
	_, err = v.fetch()
	wantError(t, err, provider.Denied, "cannot be read")
	v.setToken(irsaAudience, w.issuer.TokenAt(time.Now().Add(-2*issuer.Lifetime), frontend, irsaAudience))
	_, err = v.fetch()
	wantError(t, err, provider.Unavailable, "ExpiredTokenException", "kubelet's next call")
	v.setToken(irsaAudience, issuer.New(t).Token(frontend, irsaAudience))
	_, err = v.fetch()
	wantError(t, err, provider.Denied, "InvalidIdentityToken")
}

func TestTheRegion(t *testing.T) {
	w := newWorld(t)
	w.PutSecret(east, "db", "in the east")
	w.PutSecret(west, "db", "in the west")
	answer, failure := east, error(nil)
	node := w.provider(func(c *Config) {
		c.Region, c.NodeRegion = "", func(context.Context) (string, error) { return answer, failure }
	})
	fetch := func(p *Provider, parameters ...string) (string, error) {
		w.Provider = p
		r, err := w.mount(frontend, append(parameters, objectsKey, "- {objectName: db, objectType: secretsmanager}")...).fetch()
		return shown(r), err
	}
	for want, get := range map[string]func() (string, error){
		"in the east": func() (string, error) { return fetch(node) },
		"in the west": func() (string, error) { return fetch(node, regionKey, west) },
	} {
		if got, err := get(); err != nil || !strings.Contains(got, want) {
			t.Errorf("%s: got %s, %v", want, got, err)
		}
	}
	if got, err := fetch(w.provider()); err != nil || !strings.Contains(got, "in the west") {
		t.Errorf("the default: got %s, %v", got, err)
	}
	answer = ""
	_, err := fetch(node)
	wantError(t, err, provider.Invalid, "region", "topology.kubernetes.io/region")
	failure = &provider.Error{Kind: provider.Unavailable, Err: errors.New("away")}
	_, err = fetch(node)
	wantError(t, err, provider.Unavailable, "away")
	_, err = fetch(w.provider(func(c *Config) { c.Region = "" }))
	wantError(t, err, provider.Invalid, "region")
	w.Provider = w.provider()
	_, err = w.mount(frontend, objectsKey, "- objectName: arn:aws:secretsmanager:us-east-1:123456789012:secret:db-ABCdef").fetch()
	wantError(t, err, provider.Invalid, `"us-east-1", not of "us-west-2"`)
}

func TestEndpoints(t *testing.T) {
	for name, test := range map[string]struct {
		change       func(*Config)
		region, want string
	}{
		"the usual":          {func(*Config) {}, "eu-west-1", "sts.eu-west-1.amazonaws.com:443"},
		"FIPS":               {func(c *Config) { c.FIPS = true }, "us-east-2", "sts-fips.us-east-2.amazonaws.com:443"},
		"dual stack":         {func(c *Config) { c.DualStack = true }, "eu-west-1", "sts.eu-west-1.api.aws:443"},
		"China":              {func(*Config) {}, "cn-north-1", "sts.cn-north-1.amazonaws.com.cn:443"},
		"GovCloud":           {func(c *Config) { c.FIPS = true }, "us-gov-west-1", "sts.us-gov-west-1.amazonaws.com:443"},
		"one's own":          {func(c *Config) { c.STSURL, c.FIPS = "https://sts.example.com:8443", true }, west, "sts.example.com:8443"},
		"secrets of one's":   {func(c *Config) { c.SecretsManagerURL, c.DualStack = "https://vpce.example.com", true }, west, "vpce.example.com:443"},
		"the FIPS of tests":  {func(c *Config) { c.FIPS = true }, east, ""},
		"the other of tests": {func(c *Config) { c.DualStack = true }, east, ""},
	} {
		w := newWorld(t)
		w.PutSecret(east, "db", "x")
		w.Provider = w.provider(test.change)
		_, err := w.mount(frontend, regionKey, test.region, objectsKey, "- {objectName: db, objectType: secretsmanager}").fetch()
		if got := append(w.net.Refused(), ""); got[0] != test.want || (err == nil) != (test.want == "") {
			t.Errorf("%s: asked were %q, not %s; %v", name, got, test.want, err)
		}
	}
	w := newWorld(t)
	_, err := w.mount(frontend, regionKey, "-west", objectsKey, "- {objectName: db, objectType: secretsmanager}").fetch()
	wantError(t, err, provider.Invalid, "no such endpoint")
}

func TestFailover(t *testing.T) {
	fault := []awstest.Failure{{Code: "InternalServiceError"}, {Code: "InternalServiceError"}}
	gone := []awstest.Failure{{Code: "ResourceNotFoundException", Message: "Secrets Manager can't find the specified secret."}}
	for name, test := range map[string]struct {
		west, east []awstest.Failure
		down       string // a host
		want       string
		kind       provider.Kind
	}{
		"both answer":                    {nil, nil, "", "from west", 0},
		"a fault of the first":           {fault, nil, "", "from east", 0},
		"a fault of the second":          {nil, fault, "", "from west", 0},
		"faults of both":                 {fault, fault, "", "", provider.Unavailable},
		"the first refuses":              {gone, nil, "", "", provider.NotFound},
		"the second refuses":             {nil, gone, "", "", provider.NotFound},
		"a fault, and the other refuses": {fault, gone, "", "", provider.NotFound},
		"the first is throttled":         {[]awstest.Failure{{Code: "ThrottlingException"}}, nil, "", "", provider.Throttled},
		"the first is unreachable":       {nil, nil, "secretsmanager.us-west-2.amazonaws.com", "from east", 0},
		"the first's STS is unreachable": {nil, nil, "sts.us-west-2.amazonaws.com", "from east", 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.PutSecret(west, "db", "from west")
			w.PutSecret(east, "db2", "from east")
			w.Fail(west, "GetSecretValue", test.west...)
			w.Fail(east, "GetSecretValue", test.east...)
			if test.down != "" {
				w.net.Cut(test.down, 99)
			}
			v := w.mount(frontend, failoverRegionKey, east, objectsKey, "- {objectName: db, objectType: secretsmanager, objectAlias: db, failoverObject: {objectName: db2}}")
			r, err := v.fetch()
			if test.want == "" {
				wantError(t, err, test.kind)
				return
			}
			if err != nil || !strings.Contains(shown(r), test.want) {
				t.Fatalf("got %s, %v", shown(r), err)
			}
			if test.down == "" && len(test.west) > 0 { // it is over
				if got := v.fetched(); !strings.Contains(got, "from west") {
					t.Errorf("afterwards: got %s", got)
				}
			}
		})
	}
}

func TestARegionThatHangs(t *testing.T) {
	w := newWorld(t)
	w.patience = time.Second
	w.PutParameter(west, "p", "from west")
	w.PutParameter(east, "p", "from east")
	w.Fail(west, "GetParameters", awstest.Failure{Hang: true})
	if got := w.mount(frontend, failoverRegionKey, east, objectsKey, "- {objectName: p, objectType: ssmparameter}").fetched(); got != "p 0644 \"from east\"\n" {
		t.Errorf("got %s", got)
	}
}

func TestParametersFailOverAsWell(t *testing.T) {
	w := newWorld(t)
	w.PutParameter(west, "p", "from west")
	w.PutParameter(east, "p", "from east")
	parameters := []string{failoverRegionKey, east, objectsKey, "- {objectName: p, objectType: ssmparameter}\n- {objectName: q, objectType: ssmparameter, optional: true}"}
	if got := w.mount(frontend, parameters...).fetched(); got != "p 0644 \"from west\"\n" {
		t.Errorf("got %s", got)
	}
	w.wantCalls("it", "2 AssumeRoleWithWebIdentity, 2 GetParameters")
	w.Fail(west, "GetParameters", awstest.Failure{Code: "InternalServerError"}, awstest.Failure{Code: "InternalServerError"})
	if got := w.mount(frontend, parameters...).fetched(); got != "p 0644 \"from east\"\n" {
		t.Errorf("got %s", got)
	}
}

func TestTheAgentOfPodIdentity(t *testing.T) {
	only := func(address string) func(*Config) {
		return func(c *Config) {
			dial := c.Dial
			c.Dial = func(ctx context.Context, network, to string) (net.Conn, error) {
				if host, _, _ := net.SplitHostPort(to); strings.HasPrefix(host, "169.") && address != host || strings.HasPrefix(host, "fd00:") && address != host {
					return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("no route to host")}
				}
				return dial(ctx, network, to)
			}
		}
	}
	for _, test := range []struct {
		preferred, there string
		fails            bool
	}{
		{"", "169.254.170.23", false}, {"auto", "fd00:ec2::23", false}, {"ipv4", "169.254.170.23", false}, {"IPv6", "fd00:ec2::23", false},
		{"ipv4", "fd00:ec2::23", true}, {"ipv6", "169.254.170.23", true}, {"auto", "", true},
	} {
		w := newWorld(t, only(test.there))
		w.PutSecret(west, "db", "x")
		_, err := w.mount(frontend, podIdentityKey, "true", addressTypeKey, test.preferred, objectsKey, "- {objectName: db, objectType: secretsmanager}").fetch()
		if !test.fails && err != nil {
			t.Errorf("%+v: %v", test, err)
		}
		if test.fails {
			wantError(t, err, provider.Unavailable, "agent of EKS Pod Identity", "eks-pod-identity-agent")
		}
	}
	for name, test := range map[string]struct {
		failure awstest.Failure
		kind    provider.Kind
		words   []string
	}{
		"denied":    {awstest.Failure{Code: "AccessDeniedException", Status: 400}, provider.Denied, []string{"sts:TagSession"}},
		"over":      {awstest.Failure{Code: "ExpiredTokenException", Status: 400}, provider.Unavailable, []string{"kubelet's next call"}},
		"throttled": {awstest.Failure{Code: "ThrottlingException", Status: 429, RetryAfter: 5}, provider.Throttled, nil},
		"down":      {awstest.Failure{Code: "ServiceUnavailableException", Status: 503}, provider.Unavailable, nil},
		"unknown":   {awstest.Failure{Code: "x", Status: 403}, provider.Denied, []string{"403"}},
	} {
		w := newWorld(t)
		w.PutSecret(west, "db", "x")
		v := w.mount(frontend, podIdentityKey, "true", objectsKey, "- {objectName: db, objectType: secretsmanager}")
		test.failure.Message = string(v.request.Tokens[podIdentityAudience].Value.Reveal())
		w.Fail("", "Agent", test.failure, test.failure)
		_, err := v.fetch()
		if provider.KindOf(err) != test.kind {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		wantError(t, err, test.kind, append(test.words, "http://169.254.170.23/v1/credentials")...)
	}
	w := newWorld(t)
	w.PutSecret(west, "db", "x")
	v := w.mount(frontend, podIdentityKey, "true", objectsKey, "- {objectName: db, objectType: secretsmanager}")
	v.setToken(podIdentityAudience, w.issuer.Token(frontend, irsaAudience))
	_, err := v.fetch()
	wantError(t, err, provider.Denied, "InvalidTokenException")
}

// The agent is on the node: the pod's token is not for a proxy.
func TestTheAgentIsNeverAskedThroughAProxy(t *testing.T) {
	w := newWorld(t)
	if w.agent.Transport.(*http.Transport).Proxy != nil {
		t.Error("it is")
	}
	if w.regions.http.Transport.(*http.Transport).Proxy == nil {
		t.Error("the services are reached without one")
	}
}

func TestFind(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"prod/shop/db", "prod/shop/api", "prod/shop/old", "prod/other", "test/shop/db"} {
		w.PutSecret(west, name, "secret "+name)
		w.PutParameter(west, "/"+name, "parameter "+name)
	}
	for _, name := range []string{"prod/shop/db", "prod/shop/api", "prod/other"} {
		w.TagSecret(west, name, "team", "web")
		w.TagParameter(west, "/"+name, "team", "web")
	}
	w.TagSecret(west, "prod/shop/old", "team", "website")
	w.DeleteSecret(west, "prod/shop/old")
	for i := range 120 {
		w.PutSecret(west, fmt.Sprintf("many/%03d", i), "x")
		w.PutParameter(west, fmt.Sprintf("/many/%03d", i), "x")
	}
	w.mount(frontend, objectsKey, "- {objectName: prod/other, objectType: secretsmanager}").fetched()
	w.calls()
	for name, test := range map[string]struct{ find, want, calls string }{
		"by prefix and tag": {
			"- {find: {prefix: prod/shop/, tags: {team: web}, trimPrefix: true}, objectType: secretsmanager, objectAlias: shop, filePermission: '0400'}",
			"shop/api 0400 \"secret prod/shop/api\"\nshop/db 0400 \"secret prod/shop/db\"\n", "1 BatchGetSecretValue, 1 ListSecrets",
		},
		"by pattern": {
			"- {find: {pattern: '.*/db'}, objectType: secretsmanager}",
			"prod_shop_db 0644 \"secret prod/shop/db\"\ntest_shop_db 0644 \"secret test/shop/db\"\n", "1 BatchGetSecretValue, 2 ListSecrets",
		},
		"by tag": {
			"- {find: {tags: {team: web}}, objectType: secretsmanager}",
			"prod_other 0644 \"secret prod/other\"\nprod_shop_api 0644 \"secret prod/shop/api\"\nprod_shop_db 0644 \"secret prod/shop/db\"\n", "1 BatchGetSecretValue, 1 ListSecrets",
		},
		"parameters": {
			"- {find: {prefix: /prod/shop/, tags: {team: web}, trimPrefix: true}, objectType: ssmparameter, objectAlias: p}",
			"p/api 0644 \"parameter prod/shop/api\"\np/db 0644 \"parameter prod/shop/db\"\n", "1 DescribeParameters, 1 GetParameters",
		},
		"parameters by pattern": {
			"- {find: {pattern: '/test/.*'}, objectType: ssmparameter}", "test_shop_db 0644 \"parameter test/shop/db\"\n", "3 DescribeParameters, 1 GetParameters",
		},
		"a prefix that would be a negation": {
			"- {find: {prefix: '!prod'}, objectType: secretsmanager, optional: true}\n- {objectName: prod/other, objectType: secretsmanager}",
			"prod_other 0644 \"secret prod/other\"\n", "1 GetSecretValue, 2 ListSecrets",
		},
	} {
		v := w.mount(frontend, objectsKey, test.find)
		if got := v.fetched(); got != test.want {
			t.Errorf("%s: got\n%s", name, got)
		}
		w.wantCalls(name, test.calls)
		if got := v.fetched(); got != "not modified" {
			t.Errorf("%s: a refresh: got\n%s", name, got)
		}
		w.calls()
	}
	_, err := w.mount(frontend, objectsKey, "- {find: {prefix: many/}, objectType: secretsmanager}").fetch()
	wantError(t, err, provider.TooLarge, "more than 100")
	_, err = w.mount(frontend, objectsKey, "- {find: {prefix: none/}, objectType: ssmparameter}").fetch()
	wantError(t, err, provider.NotFound, `find prefix "none/"`)
	w.AddRole(awstest.Role{ARN: appRole, Subjects: []string{frontend.Subject()}})
	_, err = w.mount(frontend, objectsKey, "- {find: {prefix: none/}, objectType: secretsmanager}").fetch()
	wantError(t, err, provider.Denied, "secretsmanager:ListSecrets")
	_, err = w.mount(frontend, objectsKey, "- {find: {prefix: none/}, objectType: ssmparameter}").fetch()
	wantError(t, err, provider.Denied, "ssm:DescribeParameters")
}

func TestFindFailsOver(t *testing.T) {
	w := newWorld(t)
	for _, region := range []string{west, east} {
		w.PutSecret(region, "app/db", "from "+region)
	}
	fault := awstest.Failure{Code: "InternalServiceError"}
	w.Fail(west, "ListSecrets", fault, fault)
	if got := w.mount(frontend, failoverRegionKey, east, objectsKey, "- {find: {prefix: app/}, objectType: secretsmanager}").fetched(); got != "app_db 0644 \"from us-west-2\"\n" {
		t.Errorf("got %s", got)
	}
}

func TestOptionsOfEveryObject(t *testing.T) {
	w := newWorld(t)
	w.PutSecret(west, "doc", `{"user":"app","packed":"AAEC"}`)
	w.PutParameter(west, "yaml", "a:\n  b: c\n")
	w.PutSecret(west, "hex", "00ff")
	if got, want := w.mount(frontend, objectsKey, `
- {objectName: doc, objectType: secretsmanager, objectAlias: packed, extractJSONKey: packed, encoding: base64, filePermission: "0440"}
- {objectName: doc, objectType: secretsmanager, objectAlias: user, extractJSONKey: user}
- {objectName: doc, objectType: secretsmanager, objectAlias: no, extractJSONKey: none, optional: true}
- {objectName: yaml, objectType: ssmparameter, extractYAMLKey: /a/b}
- {objectName: hex, objectType: secretsmanager, encoding: hex}
`).fetched(), "packed 0440 \"\\x00\\x01\\x02\"\nuser 0644 \"app\"\nyaml 0644 \"c\"\nhex 0644 \"\\x00\\xff\"\n"; got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestAParameterThatWasMadeAnew(t *testing.T) {
	w := newWorld(t)
	w.PutParameter(west, "p", "old")
	v := w.mount(frontend, objectsKey, "- {objectName: p, objectType: ssmparameter}\n- {objectName: p, objectType: ssmparameter, objectVersion: '1', objectAlias: p1}")
	v.fetched()
	w.RemoveParameter(west, "p")
	w.PutParameter(west, "p", "new")
	if got := v.fetched(); got != "p 0644 \"new\"\np1 0644 \"new\"\n" {
		t.Errorf("got %s", got)
	}
}

// A secret of which one file may be missing is read with its value: whether that
// is still so, its version does not tell.
func TestASecretWithAMissingKeyIsRead(t *testing.T) {
	for _, order := range []string{"%[1]s\n%[2]s", "%[2]s\n%[1]s"} {
		w := newWorld(t)
		w.PutSecret(west, "doc", `{"user":"app"}`)
		v := w.mount(frontend, objectsKey, fmt.Sprintf(order, "- {objectName: doc, objectType: secretsmanager, objectAlias: user, extractJSONKey: user}", "- {objectName: doc, objectType: secretsmanager, extractJSONKey: none, optional: true}"))
		if got := v.fetched(); got != "user 0644 \"app\"\n" {
			t.Errorf("got %s", got)
		}
		w.calls()
		if got := v.fetched(); got != "not modified" {
			t.Errorf("a refresh: got %s", got)
		}
		w.wantCalls("a refresh", "1 GetSecretValue")
	}
}

func TestARefreshWithoutFilesToKeepReadsAll(t *testing.T) {
	w := newWorld(t)
	w.PutSecret(west, "db", "x")
	v := w.mount(frontend, objectsKey, "- {objectName: db, objectType: secretsmanager}")
	v.fetched()
	v.request.Current = nil // the class was another
	w.calls()
	if got := v.fetched(); got != "db 0644 \"x\"\n" {
		t.Errorf("got %s", got)
	}
	w.wantCalls("it", "1 GetSecretValue")
}

// Many at once, for the race detector.
func TestManyVolumesAtOnce(t *testing.T) {
	w := newWorld(t)
	for i := range 25 {
		w.PutSecret(west, fmt.Sprintf("x%d", i), "v")
		w.PutParameter(west, fmt.Sprintf("y%d", i), "v")
	}
	var all sync.WaitGroup
	for range 8 {
		v := w.mount(frontend, objectsKey, list("secretsmanager", "x", 25)+list("ssmparameter", "y", 25))
		all.Go(func() {
			for range 3 {
				if _, err := v.fetch(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

func BenchmarkMount(b *testing.B) {
	for _, kind := range []string{"secretsmanager", "ssmparameter"} {
		b.Run(kind, func(b *testing.B) {
			w := newWorld(b)
			for i := range 20 {
				w.PutSecret(west, fmt.Sprintf("x%d", i), "v")
				w.PutParameter(west, fmt.Sprintf("x%d", i), "v")
			}
			w.Delay(50 * time.Millisecond)
			v := w.mount(frontend, objectsKey, list(kind, "x", 20))
			for b.Loop() {
				w.Provider = w.provider() // which has to connect and to log in
				if _, err := w.Fetch(b.Context(), v.request); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/mount")
		})
	}
}
