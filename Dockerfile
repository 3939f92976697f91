# Builds two images: `weir` (the default) and, with `--target sim`, the simulator.
#
# The base is Debian slim, not distroless: its dated tags can be pinned by name, it has the C library that Weir was
# linked against, and it has `sleep` for a preStop hook. Weir itself needs glibc and, for providers' certificates, a
# list of authorities.

FROM rust:1.89.0-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates cmake g++ make && rm -rf /var/lib/apt/lists/*
# For profile-guided optimisation.
RUN rustup component add llvm-tools
WORKDIR /build
COPY . .
# Cache mounts keep earlier builds out of the layers.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build/target,sharing=locked \
    scripts/release /out

FROM debian:12.11-slim AS base
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# A number, so that Kubernetes can check that it is not root.
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
# The admin listener is on all addresses for scrapes and health checks. It therefore needs WEIR_ADMIN_TOKEN; without
# it Weir does not start.
ENV WEIR_CONFIG=/etc/weir WEIR_LISTEN=0.0.0.0:8080 WEIR_ADMIN=0.0.0.0:8081
EXPOSE 8080 8081
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["weir", "health"]
ENTRYPOINT ["weir"]
CMD ["run"]
