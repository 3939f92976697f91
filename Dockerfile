# Two images of one build: `weir` (the default) and, with `--target sim`, the simulator.
#
# Debian slim below them, not distroless: a dated tag can be pinned by its name, the C library is the very one
# that was linked against, and `sleep` is there for a preStop hook. What Weir itself needs is glibc and, for
# providers' certificates, a list of authorities.

FROM rust:1.89.0-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates cmake g++ make && rm -rf /var/lib/apt/lists/*
# What lays the program out by the profile of a run.
RUN rustup component add llvm-tools
WORKDIR /build
COPY . .
# What was built before is kept outside of the layers.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build/target,sharing=locked \
    scripts/release /out

FROM debian:12.11-slim AS base
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# By number, so that Kubernetes can see that it is not root.
USER 65532:65532
STOPSIGNAL SIGTERM

FROM base AS sim
COPY --from=build /out/weir-sim /usr/local/bin/weir-sim
EXPOSE 9090
ENTRYPOINT ["weir-sim"]
CMD ["--listen", "0.0.0.0:9090"]

FROM base AS weir
COPY --from=build /out/weir /usr/local/bin/weir
COPY config /etc/weir
# The admin listener is for the scrape and the health check; off loopback it wants WEIR_ADMIN_TOKEN, and Weir does
# not start without.
ENV WEIR_CONFIG=/etc/weir WEIR_LISTEN=0.0.0.0:8080 WEIR_ADMIN=0.0.0.0:8081
EXPOSE 8080 8081
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["weir", "health"]
ENTRYPOINT ["weir"]
CMD ["run"]
