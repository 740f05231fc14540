# The same images that `beaver up` makes, for hosts with a registry and no Rust. One target an image:
#   docker compose build            (all of them)
#   docker build --target authz .   (one)
# Mirrors: --build-arg RUST_IMAGE=<mirror>/rust:1.95-bookworm --build-arg CARGO_MIRROR=sparse+https://…/index/
ARG RUST_IMAGE=rust:1.95-bookworm

FROM ${RUST_IMAGE} AS build
ARG CARGO_MIRROR=""
RUN if [ -n "$CARGO_MIRROR" ]; then \
      mkdir -p "${CARGO_HOME:-$HOME/.cargo}" && \
      printf '[source.crates-io]\nreplace-with = "mirror"\n[source.mirror]\nregistry = "%s"\n' "$CARGO_MIRROR" \
        > "${CARGO_HOME:-$HOME/.cargo}/config.toml"; \
    fi
WORKDIR /src
COPY . .
# What --version tells: this, else the checkout's commit, of which .dockerignore lets in no more than its name.
ARG BEAVER_COMMIT=""
# .cargo/config.toml makes the binaries static, and names the target whose folder they are in.
RUN head=$(cat .git/HEAD 2>/dev/null || true) && branch=${head#ref: } && \
    named=$(cat ".git/$branch" 2>/dev/null || sed -n "s|^\([0-9a-f]*\) $branch\$|\1|p" .git/packed-refs 2>/dev/null || true) && \
    commit=$(printf '%s' "${named:-$head}" | grep -oE '^[0-9a-f]{12}' || true) && \
    export BEAVER_COMMIT="${BEAVER_COMMIT:-$commit}" && \
    cargo build --release --locked \
      -p beaver -p auth-portal -p authz -p deploy-control -p router-proxy -p app-instance && \
    mkdir -p /out/etc && \
    for name in beaver auth-portal authz deploy-control beaver-shim router-proxy app-instance; do \
      cp target/*/release/$name /out/$name; \
    done && \
    printf 'root:x:0:0:root:/:/\nbeaver:x:10001:10001:beaver:/:/\n' > /out/etc/passwd && \
    printf 'root:x:0:\nbeaver:x:10001:\n' > /out/etc/group
# So that `beaver down --purge` finds this stage too: it is the largest.
ARG BEAVER_PREFIX=beaver
LABEL beaver.stack=${BEAVER_PREFIX}

FROM scratch AS base
COPY --from=build /out/etc/passwd /out/etc/group /etc/
USER 10001:10001
ARG BEAVER_PREFIX=beaver
LABEL beaver.stack=${BEAVER_PREFIX}

FROM base AS beaver
COPY --from=build /out/beaver /beaver
ENTRYPOINT ["/beaver"]

FROM base AS auth-portal
COPY --from=build /out/auth-portal /auth-portal
ENTRYPOINT ["/auth-portal"]

FROM base AS authz
COPY --from=build /out/authz /authz
ENTRYPOINT ["/authz"]

FROM base AS deploy-control
# The shim is what it gives to the images of others.
COPY --from=build /out/deploy-control /out/beaver-shim /
ENTRYPOINT ["/deploy-control"]

FROM base AS router-proxy
COPY --from=build /out/router-proxy /router-proxy
ENTRYPOINT ["/router-proxy"]

FROM base AS app-instance
COPY --from=build /out/app-instance /app-instance
ENTRYPOINT ["/app-instance"]
