# The front door. `make demo` and `make test` work on a fresh machine with a Rust toolchain, make and a
# C compiler: what else is needed, `scripts/setup` installs, or says how.
.PHONY: demo test check chaos fuzz release bench bench-peers fmt setup

# Set up, build, and run the gateway against simulated providers. Ctrl-C ends it.
demo:
	@scripts/setup
	cargo build --locked --bins
	@exec target/debug/weir demo

# Set up and run everything that CI runs.
test:
	@scripts/setup tests
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo check --locked --manifest-path fuzz/Cargo.toml --no-default-features --target-dir target
	cargo test --locked
	target/debug/weir check

# Check the configuration.
check:
	@scripts/setup
	cargo run --locked --quiet -- check

# Two minutes of mixed load on loopback while the simulator misbehaves and the configuration reloads.
chaos:
	@scripts/setup
	CHAOS_SECONDS=$${CHAOS_SECONDS:-120} cargo test --locked --test process chaos -- --nocapture

# Each fuzz target for a bounded time (FUZZ_SECONDS, 20). Needs cargo-fuzz, which it says how to get.
FUZZ_TARGETS = head ids router template page_token mapping config cache_control
fuzz:
	@scripts/setup
	@command -v cargo-fuzz >/dev/null || { echo "fuzz: cargo install cargo-fuzz --locked, then again" >&2; exit 1; }
	@for target in $(FUZZ_TARGETS); do \
		cargo fuzz run --sanitizer none $$target -- -max_total_time=$${FUZZ_SECONDS:-20} -max_len=4096 -rss_limit_mb=2048 || exit 1; \
	done

# Both programs as they are released, in target/dist: laid out by the profile of a run; some minutes.
release:
	@scripts/setup release
	scripts/release

# What requests cost in the line, and its parts; by hand, on a machine that does nothing else.
bench:
	@scripts/setup
	cargo bench --locked --bench line

# Weir beside nginx, Varnish and HAProxy; some minutes on two cores that do nothing else. PARTS names some of
# hits instructions misses scale start waiters; left out: all.
bench-peers:
	@scripts/setup bench
	python3 benches/peers/run.py $(PARTS)

fmt:
	cargo fmt

setup:
	@scripts/setup tests
