# Everything a person needs. `make` alone lists it.
#
# PROFILE=release builds for speed: slower to build, faster to run. KUBEBUILDER_ASSETS names a folder with etcd,
# kube-apiserver and kubectl to use instead of building them.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PROFILE ?= dev
OUT := target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# The benchmarks are built by `make bench` alone: they bring dependencies that nothing else needs.
ALL := --locked --workspace --exclude vmcp-bench
BUILD := cargo build $(ALL) --profile $(PROFILE)
STEP := bash hack/step.sh
BESIDE := bash hack/with-controlplane.sh
CRD := crds/vmcpsessions.vmcp.dev.yaml
# The chart can only read what is in its own folder.
CHART_CRD := charts/vmcp-session-operator/files/vmcpsessions.vmcp.dev.yaml
# For each target.
FUZZ_SECONDS ?= 30
DENY_VERSION := 0.20.2
DENY := target/tools/cargo-deny-$(DENY_VERSION)/bin/cargo-deny

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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
	@$(STEP) "integration tests" cargo test $(ALL) --test '*'

.PHONY: bench
bench: ## The benchmarks, on a real control plane; results go to target/bench
	@$(BESIDE) --clients cargo build --locked --release --package vmcp-session-operator --package vmcp-bench --bins --examples
	@$(STEP) "benchmarks" target/release/bench

.PHONY: lint
lint: ## Format and lints, as CI checks them
	@$(STEP) "format" cargo fmt --all --check
	@$(STEP) "clippy" cargo clippy $(ALL) --all-targets --quiet -- -D warnings

.PHONY: deny
deny: $(DENY) ## Licences, sources and duplicates of the dependencies
	@$(STEP) "cargo-deny" $(DENY) --log-level error check licenses sources bans
	@echo "cargo-deny: advisories are skipped: their database is not in the repository and may be out of reach"

$(DENY):
	@$(STEP) "install cargo-deny $(DENY_VERSION)" cargo install --locked --quiet --force --version $(DENY_VERSION) \
		--root target/tools/cargo-deny-$(DENY_VERSION) cargo-deny

.PHONY: crds
crds: ## Write the resource's definition from the code
	@cargo run --locked --quiet --bin vmcp-session -- crds > $(CRD).new && mv $(CRD).new $(CRD)
	@cp $(CRD) $(CHART_CRD)
	@echo "$(CRD) is as the code says"

.PHONY: crds-check
crds-check: ## Does the definition equal the code?
	@cargo run --locked --quiet --bin vmcp-session -- crds | diff -u $(CRD) - || \
		{ echo "$(CRD) and src/api differ: run \`make crds\`" >&2; exit 1; }

.PHONY: controlplane
controlplane: ## Build etcd, kube-apiserver and kubectl for tests and the demo
	@bash tests/controlplane/build.sh target/controlplane

.PHONY: clients
clients: ## Get what tests talk to the agent with: Redis, and programs in Go, Python and TypeScript
	@bash hack/clients.sh

.PHONY: fuzz
fuzz: ## Fuzz the parser and the dispatcher of the agent: FUZZ_SECONDS=30 each, from the corpus in fuzz/
	@$(STEP) "fuzz" bash hack/fuzz.sh $(FUZZ_SECONDS)

.PHONY: ci
ci: ## All that CI does
	@.ci/run
