# The usual commands. `make demo` and `make test` need a Rust toolchain, make and a C compiler. `scripts/setup`
# installs everything else, or prints how to install it.
.PHONY: demo test test-unit check chaos memory-attacks fuzz release bench bench-builds bench-peers fmt setup

# Sets up, builds, and runs the gateway with simulated providers. Ctrl-C ends it.
demo:
	@scripts/setup
	cargo build --locked --bins
	@exec target/debug/weir demo

# Runs everything that CI runs. First it prints what it will install, and installs it.
test:
	@scripts/setup tests
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --bins -- -D warnings
	cargo check --locked --manifest-path fuzz/Cargo.toml --no-default-features --target-dir target
	cargo test --locked
	target/debug/weir check

# Runs the unit tests of Weir and of the simulator, which need no other program. For daily work.
test-unit:
	@scripts/setup
	cargo test --locked --lib --bins

# Checks the configuration in config/.
check:
	@scripts/setup
	cargo run --locked --quiet --bin weir -- check

# Runs a mixed load on loopback for CHAOS_SECONDS (default 120), while the simulator fails and the configuration reloads.
chaos:
	@scripts/setup
	cargo build --locked --bins
	CHAOS_SECONDS=$${CHAOS_SECONDS:-120} cargo test --locked --test process chaos -- --nocapture

# Runs every attack on memory at the same time and at full size, against a release build. Needs 4 GiB of free memory.
memory-attacks:
	@scripts/setup
	cargo build --locked --bins
	cargo build --release --locked --bins
	WEIR_MEMORY_ATTACKS=full WEIR_PROGRAM=$(CURDIR)/target/release/weir cargo test --locked --test process all_attacks_at_once -- --nocapture

# Runs each fuzz target for FUZZ_SECONDS (default 20). Needs cargo-fuzz, and prints how to install it.
FUZZ_TARGETS = head chunked response header_blocks ids router template page_token mapping config cache_control
fuzz:
	@scripts/setup
	@command -v cargo-fuzz >/dev/null || { echo "fuzz: cargo-fuzz is missing; run: cargo install cargo-fuzz --locked" >&2; exit 1; }
	@for target in $(FUZZ_TARGETS); do \
		cargo fuzz run --sanitizer none $$target -- -max_total_time=$${FUZZ_SECONDS:-20} -max_len=4096 -rss_limit_mb=2048 || exit 1; \
	done

# Builds both programs for a release, into target/dist, with profile-guided optimisation. Takes some minutes.
release:
	@scripts/setup release
	scripts/release

# Measures the parts of a request without a socket. Run it on a machine without other load.
bench:
	@scripts/setup
	cargo bench --locked --bench line

# Measures Weir, nginx, Varnish and HAProxy. Takes some minutes on two cores without other load. PARTS selects some of
# hits, instructions, misses, scale, start, waiters (default: all).
bench-peers:
	@scripts/setup bench
	python3 benches/peers/run.py $(PARTS)

# Compares this build with the program at BASE in one run: CPU time and instructions per hit, list and miss.
bench-builds:
	@scripts/setup bench
	cargo build --release --locked --bins
	python3 benches/peers/builds.py --base $(BASE) --new target/release/weir --sim target/release/weir-sim --most 1.02

fmt:
	cargo fmt

setup:
	@scripts/setup tests
