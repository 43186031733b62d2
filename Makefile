# The two commands of a newcomer are `make demo` and `make test`; each does all the set-up.
# Everything is built in release mode and for the whole workspace, so that demo, tests and lint
# share what they compile.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test crash fuzz soak lint bench models build setup clean

# Set for cargo and for us, so that both look in the same place whatever cargo's own settings say.
export CARGO_TARGET_DIR ?= $(CURDIR)/target
addenda := $(CARGO_TARGET_DIR)/release/addenda

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## set up, build, and run the main job on a small real model
	@$(addenda) model fetch smollm2-135m
	@$(addenda) demo

test: build ## set up, build, and run all tests
	@$(addenda) model fetch smollm2-135m gemma3-270m
	@setup/test.sh

crash: setup ## kill processes that write packets (300 times, twice) and facts (100 times), and look for what was lost
	cargo test --release --workspace --locked --test store --test all -- --ignored three_hundred a_hundred_kills

fuzz: setup ## feed every decoder bytes, guided by coverage, five minutes each
	@setup/fuzz.sh

soak: setup ## an hour of mixed traffic: no error, no leak (make soak seconds=120: two minutes)
	@cargo build --release --workspace --bins --locked
	@$(addenda)-bench soak --seconds $(or $(seconds),3600) --json

lint: setup ## format, clippy, rustdoc (warnings are errors), the crates' arrows
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --release --workspace --no-deps --locked
	python3 setup/arrows.py

bench: setup ## measure packets, rates, clients and the store, beside Transformers and llama.cpp
	@cargo build --release --workspace --bins --locked
	@$(addenda)-bench ttft --json
	@$(addenda)-bench store --json
	@benches/peers/compare.sh $(addenda)

models: build ## fetch the four models of the catalogue (2 GB)
	@$(addenda) model fetch smollm2-135m gemma3-270m qwen2.5-0.5b qwen2.5-1.5b

build: setup ## the binary, target/release/addenda
	@cargo build --release --workspace --bin addenda --locked

setup: ## check tools, find or fetch libtorch
	@setup/setup.sh

clean: ## remove what was built here; libtorch and models stay in the user's cache
	cargo clean
