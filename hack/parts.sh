# Sourced by the scripts that get what tests need. Each part is a folder in target/tools, made once, and again when what it
# is made from changes.
# Whoever sources it has set `root`, the folder of the project, and `who`, the name that its lines begin with.

tools=$root/target/tools

say() { echo "$who: $*"; }
fail() { echo "$who: $*" >&2; exit 1; }
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

# Lists of packages of our own, where the machine has none (as in most container images): needs no root either.
apt_of_our_own() {
  mkdir -p "$1"/{state/lists/partial,cache/archives/partial}
  apt=(apt-get -q -o "Dir::State=$1/state" -o "Dir::Cache=$1/cache" -o Dir::State::status=/var/lib/dpkg/status)
  quietly "apt-get update" "$1/log" "${apt[@]}" update
}

# unpacked OUT PACKAGE...: the distribution's packages, unpacked in OUT/root without root. Nothing of the machine changes.
unpacked() {
  local out=$1 log=$1/log package apt=(apt-get -q)
  shift
  for package in apt-get dpkg-deb; do
    command -v "$package" >/dev/null ||
      fail "$package was not found: this comes from Debian's or Ubuntu's packages; ${elsewhere:-there is no other way}"
  done
  mkdir "$out/packages"
  cd "$out/packages"
  # A list may name a version that the mirror no longer has; then a fresh one helps.
  "${apt[@]}" download "$@" >"$log" 2>&1 ||
    { apt_of_our_own "$out/apt" && quietly download "$log" "${apt[@]}" download "$@"; } ||
    fail "the packages $* could not be downloaded: see above; ${elsewhere:-a network is needed the first time}"
  for package in *.deb; do dpkg-deb -x "$package" "$out/root" || fail "$package could not be unpacked"; done
  cd "$out"
  rm -rf packages apt
}
