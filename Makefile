# Everything a person needs. `make` alone lists it.
#
# PROFILE=release builds for speed: slower to build, faster to run. KUBEBUILDER_ASSETS names a folder with etcd,
# kube-apiserver and kubectl to use instead of building them; tests of the chart want helm, helm3 and kube-controller-manager there too.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Images are built for speed, unless somebody says otherwise.
IMAGE_PROFILE := $(or $(PROFILE),release)
PROFILE ?= dev
OUT := target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# Tests on a control plane wait for others a third of their time.
TESTS_AT_ONCE ?= $(shell echo $$(($$(nproc) * 3 / 2)))
# The benchmarks are built by `make bench` alone: they bring dependencies that nothing else needs.
ALL := --locked --workspace --exclude vmcp-bench
BUILD := cargo build $(ALL) --profile $(PROFILE)
STEP := bash hack/step.sh
BESIDE := bash hack/with-controlplane.sh
CRD := crds/vmcpsessions.vmcp.dev.yaml
# The chart can only read what is in its own folder.
CHART_CRD := charts/vmcp-session-operator/files/vmcpsessions.vmcp.dev.yaml
# What the programs' accounts asked the API servers of the tests for.
RIGHTS := target/rights
# For each target.
FUZZ_SECONDS ?= 30
HELM ?= target/controlplane/helm
DENY_VERSION := 0.20.2
DENY := target/tools/cargo-deny-$(DENY_VERSION)/bin/cargo-deny

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Show it: a real control plane, two controllers, three pods; change sessions, see copies drop
	@$(BESIDE) $(BUILD) --bins --examples
	@bash hack/mcp-client.sh
	@$(OUT)/examples/demo

.PHONY: dev
dev: ## The demo's cluster, left running for you: prints what to try; ctrl-C ends it
	@$(BESIDE) $(BUILD) --bins --examples
	@exec $(OUT)/examples/dev

.PHONY: test
test: ## All tests, those on a real control plane among them
	@$(BESIDE) --clients $(MAKE) --no-print-directory test-unit
	@$(MAKE) --no-print-directory test-integration

.PHONY: test-unit
test-unit: ## Unit and property tests, documentation examples: no control plane needed
	@$(STEP) "build the tests" cargo test $(ALL) --no-run --quiet
	@$(STEP) "unit and property tests" cargo test $(ALL) --lib --bins
	@$(STEP) "examples in the documentation" cargo test $(ALL) --doc

.PHONY: test-integration
test-integration: controlplane clients
	@$(STEP) "build the programs under test" cargo build $(ALL) --bins --examples
	@bash hack/mcp-client.sh
	@rm -rf $(RIGHTS)
	@$(STEP) "integration tests" env RUST_TEST_THREADS=$(TESTS_AT_ONCE) RIGHTS_USED=$(CURDIR)/$(RIGHTS) cargo test $(ALL) --test '*'
	@$(STEP) "rights: granted, used, refused" $(OUT)/rights $(RIGHTS)

.PHONY: e2e
e2e: ## Install it on a real node (containerd, kubelet, Helm) in namespaces of its own, and live with it. Needs root
	@bash hack/e2e.sh --check
	@bash hack/give-back.sh $(MAKE) --no-print-directory PROFILE=$(PROFILE) e2e-as-root

.PHONY: e2e-as-root
e2e-as-root:
	@$(BESIDE) $(MAKE) --no-print-directory PROFILE=$(PROFILE) image image-example
	@bash hack/realnode.sh
	@bash hack/mcp-client.sh
	@$(STEP) "tests on a real node" bash hack/e2e.sh

.PHONY: bench
bench: ## The benchmarks, on a real control plane; results go to target/bench
	@$(BESIDE) --clients cargo build --locked --release --package vmcp-session-operator --package vmcp-bench --bins --example pod
	@$(STEP) "benchmarks" target/release/bench

.PHONY: lint
lint: ## Format and lints, as CI checks them
	@$(STEP) "format" cargo fmt --all --check
	@$(STEP) "clippy" cargo clippy $(ALL) --all-targets --quiet -- -D warnings
	@$(STEP) "lock file of the fuzzing" sh -c 'cargo metadata --locked --quiet --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null'

.PHONY: image-test
image-test: ## Tests of the program that writes images
	@$(STEP) "tests of the image's program" env GOWORK=off go -C hack/image test ./...

.PHONY: deny
deny: $(DENY) ## Licences, sources and duplicates of the dependencies
	@$(STEP) "cargo-deny" $(DENY) --workspace --log-level error check --allow duplicate licenses sources bans
	@$(STEP) "cargo-deny, duplicates" $(DENY) --exclude-dev --log-level error check bans
	@echo "cargo-deny: advisories are skipped: their database is not in the repository and may be out of reach"

$(DENY):
	@$(STEP) "install cargo-deny $(DENY_VERSION)" cargo install --locked --quiet --force --debug --version $(DENY_VERSION) \
		--root target/tools/cargo-deny-$(DENY_VERSION) cargo-deny

.PHONY: advisories
advisories: $(DENY) ## Known vulnerabilities of the dependencies, from a database that must be in reach
	@$(STEP) "advisories" $(DENY) --workspace --log-level error check advisories

.PHONY: sbom
sbom: ## What the program is made of, on each processor (CycloneDX): target/sbom/vmcp-session.cdx.json
	@$(STEP) "sbom" bash hack/sbom.sh

.PHONY: workflows
workflows: target/tools/bin/actionlint ## Check the workflow files
	@$(STEP) "actionlint" $< -shellcheck= -pyflakes=

target/tools/bin/%: hack/tools/go.mod hack/tools/go.sum
	@cd hack/tools && GOWORK=off GOBIN=$(CURDIR)/target/tools/bin go install -trimpath tool && touch $(CURDIR)/$@

.PHONY: crds
crds: ## Write the resource's definition from the code
	@cargo run --locked --quiet --bin vmcp-session -- crds > $(CRD).new && mv $(CRD).new $(CRD)
	@cp $(CRD) $(CHART_CRD)
	@echo "$(CRD) is as the code says"

.PHONY: crds-check
crds-check: ## Does the definition equal the code?
	@cargo run --locked --quiet --bin vmcp-session -- crds | diff -u $(CRD) - || \
		{ echo "$(CRD) and src/api differ: run \`make crds\`" >&2; exit 1; }

.PHONY: image
image: ## The operator's image, for this processor or ARCHS="amd64 arm64": target/image/vmcp-session.tar
	@$(STEP) "image" env PROFILE=$(IMAGE_PROFILE) bash hack/image.sh vmcp-session-operator vmcp-session $(ARCHS)

.PHONY: image-example
image-example: ## The example's image, for tests: target/image/vmcp-server.tar
	@$(STEP) "image of the example" env PROFILE=$(IMAGE_PROFILE) bash hack/image.sh vmcp-example-server vmcp-server $(ARCHS)

.PHONY: image-check
image-check: ## Do two folders give one image?
	@$(STEP) "image check" env PROFILE=$(PROFILE) bash hack/image-check.sh

.PHONY: chart-package
chart-package: ## The chart as a release has it, in target/chart
	@$(HELM) package charts/vmcp-session-operator --destination target/chart

.PHONY: release-check
release-check: ## Do all say the version that TAG says?
	@bash hack/release-check.sh $(TAG)

# Prints for GitHub what was pushed, so it says nothing else.
.PHONY: publish
publish: target/tools/bin/crane ## Push image and chart to REGISTRY=ghcr.io/vmcp-dev
	@HELM=$(HELM) bash hack/publish.sh $(REGISTRY)

.PHONY: publish-check
publish-check: target/tools/bin/crane ## Push image and chart to a registry on this machine, and look at what arrived
	@$(STEP) "publish check" env HELM=$(HELM) bash hack/publish-check.sh

.PHONY: controlplane
controlplane: ## Build etcd, kube-apiserver, kubectl, Helm and the parts of a node for tests and the demo
	@bash tests/controlplane/build.sh target/controlplane

.PHONY: clients
clients: ## Get what tests talk to: Redis, Prometheus, and clients in Go, Python and TypeScript
	@bash hack/clients.sh

.PHONY: fuzz
fuzz: ## Fuzz the parser and the dispatcher of the agent: FUZZ_SECONDS=30 each, from the corpus in fuzz/
	@$(STEP) "fuzz" bash hack/fuzz.sh $(FUZZ_SECONDS)

.PHONY: ci
ci: ## What CI does at each change: lint, deny, test, demo, a short fuzz, and e2e where this is root
	@.ci/run
