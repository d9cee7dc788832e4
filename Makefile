# Aquifer: every target installs what it needs (Debian packages, crates) through the ordinary clients.
SHELL := /bin/bash
.DELETE_ON_ERROR:

# Programs that the lab's pods run and that tests look at the wire with. Nothing else is changed on the machine.
PACKAGES := gcc libc6-dev make cmake mold ca-certificates nftables iproute2 iptables tcpdump nginx-light redis-server redis-tools wrk curl msmtp-mta openssl procps util-linux dnsmasq-base bind9-dnsutils
# BoringSSL is C++, and its bindings are made by libclang.
BORING_PACKAGES := g++ clang libclang-dev
# What `make bench` makes load with and looks with; Envoy, the baseline, comes from its Python wheel.
BENCH_PACKAGES := iperf3 ethtool nghttp2-client valgrind linux-perf python3-venv clang
# The store of a cluster; its API server is built as a Go module (`make kube`).
API_PACKAGES := etcd-server etcd-client
# What a whole node runs, and what goes into the images of its pods.
CLUSTER_PACKAGES := $(API_PACKAGES) containerd runc containernetworking-plugins busybox-static conntrack ipset socat ebtables python3
PROFILE ?= demo
BIN = $(or $(CARGO_TARGET_DIR),target)/$(PROFILE)
export MAKECMDGOALS

.PHONY: help preflight deps build demo bench icount test test-api test-tunnels test-boring kube cluster-up cluster-down mutants lint deny fmt release clean

help: ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | column -t -s "$$(printf '\t')"

deps: ## Install the Debian packages that building, the lab and the tests use.
	@scripts/deps $(PACKAGES)

build: deps ## Build all binaries, optimised (without LTO).
	@scripts/build $(PROFILE)

demo: preflight build $(if $(API_SERVER),kube) ## Start a two-node lab and walk through the main job, live. KEEP=1 leaves it up; API_SERVER=1 takes a real Kubernetes API server.
	@$(BIN)/aquifer demo $(if $(KEEP),--keep) $(if $(API_SERVER),--api-server)

bench: preflight deps ## Measure what the mesh costs against none and against sidecars. QUICK=1 ends within 3 minutes.
	@scripts/deps $(BENCH_PACKAGES)
	@scripts/bench $(if $(QUICK),--quick) $(BENCH_ARGS)

icount: deps ## Count instructions of the hot functions and compare them with the last figures. UPDATE=1 writes these.
	@scripts/deps valgrind
	@scripts/icount $(if $(UPDATE),--update)

test: preflight deps ## Set everything up and run all tests.
	@scripts/test

test-api: preflight deps kube ## Run the tests of the control plane on a real Kubernetes API server.
	@scripts/test-api $(TEST_ARGS)

kube: ## Build the Kubernetes API server, once for this machine: some 7 minutes of two cores.
	@scripts/deps $(API_PACKAGES)
	@tests/cluster/binaries api >/dev/null

cluster-up: preflight deps ## Start a whole Kubernetes node, in namespaces of its own: tests/cluster/k is its kubectl.
	@scripts/deps $(CLUSTER_PACKAGES)
	@tests/cluster/up

cluster-down: ## End it: nothing of it stays.
	@tests/cluster/down

test-tunnels: preflight deps ## Run the lab tests with every fast path off: all that must hold, through tunnels alone.
	FAST_PATHS=off cargo test -p aquifer-tests --test lab -- --test-threads="$${TEST_THREADS:-4}"

test-boring: preflight deps ## Run the tests of all that speaks TLS on BoringSSL instead of AWS-LC.
	@scripts/deps $(BORING_PACKAGES)
	@scripts/test-boring

mutants: preflight deps ## Break the lines that tests/mutants.toml names, one by one; a test must notice each.
	@scripts/mutants

lint: deps ## Formatting, clippy with warnings denied, licences and sources.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features aquifer-api-tests/api -- -D warnings
	@$(MAKE) --no-print-directory deny

deny: ## cargo-deny: bans, licences, sources.
	@scripts/deny

fmt: ## Format.
	cargo fmt --all

release: deps ## Build what ships (LTO, one codegen unit).
	cargo build --release --workspace --bins

clean: ## Remove build output.
	cargo clean

preflight:
	@scripts/preflight
