# The two commands of the README: `make demo` and `make test`. Everything CI runs is a target here.
SHELL := /bin/bash
.PHONY: all demo test setup build lint fmt docs unit e2e bench chaos kills matrix deny clean

NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo 'cargo nextest run --profile $(if $(CI),ci,default)' || echo 'cargo test')
# CI builds once, without optimisation; a person who runs the demo sees the release build.
PROFILE ?= $(if $(CI),dev,release)
OUT = target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
export OUTPOST_REQUIRE_NEIGHBOURS ?= 1

all: build

setup:
	@scripts/setup.sh

build: setup
	cargo build --locked --workspace --profile $(PROFILE)

demo: build
	@$(OUT)/demo

# Everything that CI checks, in the order in which it fails fastest.
test: setup lint docs unit e2e

fmt:
	cargo fmt --all --check

lint: fmt
	cargo clippy --locked --workspace --lib --bins --examples -- -D warnings
	cargo clippy --locked --workspace --tests -- -D warnings -A clippy::unwrap_used -A clippy::expect_used -A clippy::wildcard_enum_match_arm -A clippy::needless_pass_by_value -A clippy::print_stderr -A clippy::print_stdout

docs:
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --locked --workspace --no-deps --quiet

# Tables, properties, golden bytes, the seeded simulation and the real neighbours.
unit:
	cargo build --locked --workspace
	$(NEXTEST) --locked --workspace
	cargo test --locked --quiet --doc --workspace

# The demo without a person in front of it: every step is an assertion.
e2e:
	cargo build --locked --workspace
	CI=1 target/debug/demo

bench: setup
	cargo build --locked --workspace --release
	cargo build --locked --release -p broker --example broker
	target/release/bench

# Daemons, shims and loggers killed at seeded steps while pods come and go. The seed is printed.
ROUNDS ?= 300
chaos:
	cargo build --locked --workspace
	nice -n 10 target/debug/chaos --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED))

# edgecore, the hub and (BROKER=mosquitto) a broker that is not ours, killed again and again while twenty devices
# publish; the link is cut now and then. Without BROKER both loops run. The seed is printed.
kills:
	cargo build --locked --workspace
	for broker in $(or $(BROKER),inside mosquitto); do \
	  nice -n 10 target/debug/kills --broker $$broker --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED)) || exit 1; \
	done

# The tests of pods on other versions of containerd: the pod tests, the calls that fail, and chaos on each that can be had.
matrix:
	cargo build --locked --workspace
	set -e; IFS=:; for dir in $${OUTPOST_CONTAINERD_DIRS:-$$(scripts/containerd-matrix.sh)}; do \
	  echo "== $$("$$dir/containerd" --version)"; export OUTPOST_CONTAINERD_DIR="$$dir"; unset IFS; \
	  $(NEXTEST) --locked -p edgecore --test containerd --test edged; \
	  $(NEXTEST) --locked -p outpost-tests --test calls --test chaos --test pods; \
	  nice -n 10 target/debug/chaos --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED)); IFS=:; \
	done

deny:
	cargo deny check

clean:
	rm -rf target/demo target/bench
