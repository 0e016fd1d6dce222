# make demo    the life of a pod's secrets on this machine, in a few seconds
# make test    everything that is checked: formatting, linters, unit tests, whole-system tests
# make help    all targets

MODULE  := github.com/csi-secrets/csi-secrets
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
# Without gRPC's tracing pages the program is a fifth smaller, in memory too.
TAGS    := grpcnotrace
PROGRAMS := ./cmd/csi-secrets ./cmd/csi-secrets-exec
GOBUILD  = CGO_ENABLED=0 go build -tags $(TAGS) -trimpath -ldflags '$(LDFLAGS)'

# The race detector needs a C compiler; without one the tests run all the same.
HAVE_CC := $(shell command -v $$(go env CC) 2>/dev/null)
RACE    := $(if $(HAVE_CC),-race)

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.1.4
FUZZTIME    ?= 5s
ARCHES      := amd64 arm64

# helm: this machine's, or one that is built once, outside the tree.
HELM = $$(go run ./test/cluster/cmd program helm)

.PHONY: help
help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

.PHONY: build
build: ## build bin/csi-secrets and bin/csi-secrets-exec
	$(GOBUILD) -o bin/ $(PROGRAMS)

.PHONY: demo
demo: build ## show the driver's main job on this machine, without Kubernetes
	@bin/csi-secrets demo

.PHONY: test
test: lint build unit system stores e2e fuzz ## run everything that is checked

# What stands in for the clouds in tests.
CLOUDS := ./test/aws ./test/azure ./test/cloud ./test/gcp ./test/issuer

.PHONY: unit
unit: ## unit tests, under the race detector where there is a C compiler
	@$(if $(RACE),,echo "no C compiler: the tests run without the race detector")
	HELM="$(HELM)" go test $(RACE) ./charts/... ./cmd/... ./internal/... ./pkg/... $(CLOUDS)

SYSTEM := ./test/badinput ./test/bench ./test/canary ./test/faults ./test/serving
STORES := ./test/child ./test/postgres ./test/vault ./test/stores
E2E    := ./test/cluster ./test/e2e ./test/migrate ./test/peer/...

# The driver under test is built with the race detector too, and ends at the
# first race that it sees.
.PHONY: system
system: ## conformance (csi-sanity), faults, bad input and redaction, against the real binary, without Kubernetes
	$(if $(RACE),go build -race,$(GOBUILD)) -o bin/csi-secrets-test ./cmd/csi-secrets
	CSI_SECRETS_BIN=$(CURDIR)/bin/csi-secrets-test GORACE=halt_on_error=1 go test $(RACE) -count=1 -timeout 30m ./sanity $(SYSTEM)

# Vault is built once, in some five minutes.
.PHONY: stores
stores: ## the real binary with real stores: Vault and PostgreSQL
	$(if $(RACE),go build -race,$(GOBUILD)) -o bin/csi-secrets-test ./cmd/csi-secrets
	CSI_SECRETS_BIN=$(CURDIR)/bin/csi-secrets-test GORACE=halt_on_error=1 go test -count=1 -timeout 30m -p 1 $(STORES)

.PHONY: soak
soak: ## a pod that logs in to PostgreSQL for ten minutes with passwords from Vault, in a real Kubernetes
	CSI_SECRETS_SOAK=10m go test -count=1 -timeout 30m -v -run TestADatabasePasswordFromVaultAlwaysWorks ./test/e2e

.PHONY: e2e
e2e: ## the chart and the image in a real Kubernetes, which is built once; needs root
	go test -count=1 -timeout 60m -p 1 $(E2E)

# Where the time of a target ends, go test may say "context deadline exceeded" of a
# run that has found nothing (https://go.dev/issue/75804, mended in Go 1.27): such a
# target is run again. Input that fails is written to testdata, and the run says so.
.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME each
	@go list ./cmd/... ./internal/... ./pkg/... | while read -r package; do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "fuzz $$package $$target"; \
			for try in 1 2 3; do \
				said=$$(go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package 2>&1); failed=$$?; \
				printf "%s\n" "$$said"; \
				test $$failed != 0 && printf "%s\n" "$$said" | grep -qx '    context deadline exceeded' && ! printf "%s\n" "$$said" | grep -q 'Failing input' || break; \
			done; \
			test $$failed = 0 || exit 1; \
		done; \
	done

.PHONY: lint
lint: helm-lint ## formatting, vet, staticcheck, the chart
	@test -z "$$(gofmt -l charts cmd internal pkg sanity test)" || { echo "not formatted:"; gofmt -l charts cmd internal pkg sanity test; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...

.PHONY: chart
chart: helm-lint ## check the Helm chart: lint with every set of values, and its tests
	HELM="$(HELM)" go test -count=1 ./charts/...

# helm's own idea of a Kubernetes version is older than any that the chart takes.
.PHONY: helm-lint
helm-lint:
	@helm="$(HELM)" && for values in charts/testdata/values/*.yaml; do \
		"$$helm" lint --strict --quiet --kube-version v1.36.0 -f $$values charts/csi-secrets || exit 1; \
	done

.PHONY: vuln
vuln: ## look for known vulnerabilities; needs a network that reaches vuln.go.dev
	go run $(GOVULNCHECK) ./...

.PHONY: bench
bench: build ## rates, latencies and memory, beside the kernel's floor in the same run, and what stores are asked
	go run ./test/bench -driver bin/csi-secrets
	CSI_SECRETS_FLEET=1000 go test -count=1 -timeout 5m -v -run Fleet ./test/bench

.PHONY: bench-peer
bench-peer: ## the same side by side with secrets-store-csi-driver, in a cluster; needs root
	go run ./test/peer

.PHONY: binaries
binaries: # the programs of the image, one for each architecture
	@for arch in $(ARCHES); do \
		echo "build dist/linux_$$arch"; \
		GOOS=linux GOARCH=$$arch $(GOBUILD) -o dist/linux_$$arch/ $(PROGRAMS) || exit 1; \
		chmod 0555 dist/linux_$$arch/*; \
	done

IMAGE     ?= csi-secrets:$(VERSION)
PLATFORM  ?= linux/$(shell go env GOARCH)
CONTAINER ?= $(firstword $(foreach p,docker buildah podman,$(if $(shell command -v $(p)),$(p))))
.PHONY: image
image: binaries ## build the container image IMAGE for PLATFORM with CONTAINER (docker, buildah or podman)
	$(CONTAINER) build --platform $(PLATFORM) -t $(IMAGE) .

# The programs of Kubernetes are built once, into a cache outside this tree;
# test/cluster/README.md has more, such as the flags that CLUSTERFLAGS may hold.
NODES ?= 1
.PHONY: cluster
cluster: ## a real Kubernetes on this machine with the image in it, NODES nodes; needs root
	@go run ./test/cluster/cmd up --nodes $(NODES) $(CLUSTERFLAGS)

.PHONY: cluster-down
cluster-down: ## remove that Kubernetes with everything that it made
	@go run ./test/cluster/cmd down $(CLUSTERFLAGS)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
