#!/bin/bash
# compose.yaml and the Dockerfile by themselves, as the README has it for hosts with Docker and no Rust: in a fresh clone
# `docker compose run --rm beaver init` and `docker compose up -d`, a sign-up, a workspace that answers, and `down`.
#
#     sudo tests/compose_by_itself.sh
#
# Not part of every CI run: it compiles everything once more, optimised and in a container, which takes as long as the
# rest of CI and 5 GB of disk. That both compose tools can read the file, that every service gets its settings and its
# own secrets, and all that happens once the services run, `cargo test` covers.
#
# The base image is taken as it is when the engine has it (`docker pull rust:1.95-bookworm`). Otherwise it is made here
# under the same name, with debootstrap and the Rust toolchain and crates of this host, for as long as the test takes.
# Everything it makes bears a prefix of its own and is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$PWD
prefix=bt-compose-$$
slug=alice

fail() { echo "FAILED: $*" >&2; exit 1; }
step() { printf '==> %4d s  %s\n' "$SECONDS" "$*"; }

if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
for tool in docker "${compose[0]}" git curl openssl; do
    command -v "$tool" >/dev/null || fail "$tool is needed"
done
[[ $EUID == 0 ]] || fail "root is needed, to make the base image and to remove what workspaces wrote"

base=$(sed -n 's/^ARG RUST_IMAGE=//p' Dockerfile)
made_base=
work=$(mktemp -d)
labelled() { docker "$@" --filter "label=beaver.stack=$prefix" --quiet; }
finish() {
    local status=$?
    trap - EXIT INT TERM
    if ((status != 0)) && [[ -d $work/beaver ]]; then
        (cd "$work/beaver" && "${compose[@]}" ps && "${compose[@]}" logs --tail=20) 2>&1 | tail -n 100 || true
    fi
    step "removing what was made"
    labelled container ls --all | xargs --no-run-if-empty docker rm --force --volumes >/dev/null || true
    labelled network ls | xargs --no-run-if-empty docker network rm >/dev/null || true
    # More than one tag or stage may share an image: again, until none is left.
    for _ in 1 2 3; do labelled image ls --all | sort -u | xargs --no-run-if-empty docker image rm --force >/dev/null 2>&1 || true; done
    [[ -z $made_base ]] || docker image rm --force "$base" >/dev/null || true
    rm -rf --one-file-system "$work"
    local left
    left=$(labelled container ls --all; labelled network ls; labelled image ls --all)
    if [[ -n $left ]]; then
        echo "left behind: $left" >&2
        ((status != 0)) || status=1
    fi
    ((status == 0)) && step "passed" || step "exit code $status"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

make_base() {
    local root=$work/base toolchain
    command -v debootstrap >/dev/null || fail "debootstrap is needed to make $base (or: docker pull $base)"
    toolchain=$(rustc --print sysroot)
    [[ $base == rust:$(rustc --version | grep -oE '[0-9]+\.[0-9]+' | head -n 1)-* ]] ||
        fail "this host's Rust is not the one of $base: $(rustc --version)"
    debootstrap --variant=minbase --include=build-essential,ca-certificates "${base##*-}" "$root" >"$work/debootstrap.log" 2>&1 ||
        fail "debootstrap: $(tail -n 3 "$work/debootstrap.log")"
    mkdir -p "$root/usr/local/rust" "$root/usr/local/cargo/registry"
    cp -a "$toolchain/bin" "$toolchain/lib" "$root/usr/local/rust/"
    # So that nothing is downloaded twice; what is missing is fetched.
    cargo fetch --locked --quiet
    cp -a "${CARGO_HOME:-$HOME/.cargo}"/registry/{index,cache} "$root/usr/local/cargo/registry/"
    tar -C "$root" -c . | docker import \
        --change 'ENV CARGO_HOME=/usr/local/cargo PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'CMD ["bash"]' - "$base" >/dev/null
    made_base=yes
    rm -rf --one-file-system "$root"
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Waits for a command to succeed: $1 seconds at most.
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.5
    done
}

if docker image inspect "$base" >/dev/null 2>&1; then
    step "$base is here"
else
    step "making $base"
    make_base
fi

step "a fresh clone of $(git rev-parse --short=12 HEAD)"
git clone --quiet "$source" "$work/beaver"
cd "$work/beaver"
commit=$(git rev-parse --short=12 HEAD)
# Names of this test's own, for a host where another stack may run. On its own host nobody needs them.
portal_port=$(free_port) router_port=$(free_port)
export BEAVER_PREFIX=$prefix COMPOSE_PROJECT_NAME=$prefix BEAVER_NET=$prefix-instance-edge

step "${compose[*]} run --rm beaver init"
"${compose[@]}" run --rm beaver init --prefix "$prefix" --data-dir "$work/data" \
    --portal-port "$portal_port" --router-port "$router_port" >"$work/init.log" 2>&1 ||
    fail "init: $(tail -n 40 "$work/init.log")"
grep -q "http://localhost:$portal_port/operator/setup?token=" "$work/init.log" || fail "no operator link: $(tail -n 5 "$work/init.log")"
[[ $(stat -c %a .env) == 600 ]] || fail ".env has mode $(stat -c %a .env)"

step "${compose[*]} up -d"
"${compose[@]}" up -d >"$work/up.log" 2>&1 || fail "up: $(tail -n 40 "$work/up.log")"

services=("$prefix-router-proxy" "$prefix-authz-service" "$prefix-deploy-control" "$prefix-auth-portal")
is_healthy() { [[ $(docker inspect --format '{{.State.Health.Status}}' "$1") == healthy ]]; }
for service in "${services[@]}"; do
    until_true 120 is_healthy "$service" || fail "$service is not healthy: $(docker logs --tail 20 "$service" 2>&1)"
done
step "all four services are healthy"

for name in beaver auth-portal authz deploy-control router-proxy app-instance; do
    version=$(docker run --rm --network none "$prefix/$name:latest" --version)
    [[ $version == *"($commit)"* ]] || fail "$name tells version '$version', not of commit $commit"
done
step "--version of every image tells $commit"

# Whoever may inspect containers must not learn a secret.
inspected=$(labelled container ls --all | xargs docker inspect)
checked=0
while IFS='=' read -r name value; do
    ((${#value} >= 32)) || continue
    checked=$((checked + 1))
    [[ $inspected != *"$value"* ]] || fail "docker inspect shows $name"
done < <(grep -E '^[A-Z_]+_(TOKEN|KEY)=' .env)
((checked >= 5)) || fail "only $checked secrets in .env"
step "docker inspect shows none of $checked secrets"

portal=http://localhost:$portal_port workspace=http://$slug.localhost:$router_port
browser() { curl --silent --show-error --max-time 20 --cookie "$work/cookies" --cookie-jar "$work/cookies" "$@"; }
key=$(browser "$portal/register" | grep -oE 'name="key" value="[^"]+"' | cut -d '"' -f 4)
answer=$(browser --output /dev/null --write-out '%{http_code} %{redirect_url}' --header "Origin: $portal" \
    --data-urlencode "key=$key" --data-urlencode "slug=$slug" --data-urlencode "email=$slug@example.org" \
    --data-urlencode "password=$(openssl rand -hex 16)" "$portal/register")
[[ $answer == "303 $portal/progress" ]] || fail "the sign-up was answered $answer"
step "$slug signed up"

is_there() { [[ $(browser --location --output "$work/page" --write-out '%{http_code} %{url_effective}' "$workspace/") == "200 $workspace/"* ]]; }
until_true 90 is_there || fail "the workspace does not answer: $(browser --location --include "$workspace/" | head -n 40)"
container=$(docker container ls --filter "label=beaver.stack=$prefix" --filter label=beaver.instance --format '{{.Image}} {{.Networks}}')
[[ $container == "$prefix/app-instance:latest none" ]] || fail "the workspace's container: $container"
step "$workspace answers, signed in"

step "${compose[*]} down"
"${compose[@]}" down >"$work/down.log" 2>&1 || fail "down: $(tail -n 40 "$work/down.log")"
for service in "${services[@]}"; do
    ! docker inspect "$service" >/dev/null 2>&1 || fail "$service is still there"
done
[[ -n $(ls "$work/data/authz") && -n $(ls "$work/data/instances") ]] || fail "the data is gone"
step "services are gone, data is kept"
