#!/usr/bin/env bash
# mcp-client.sh [OUT_DIR]: installs the official Python MCP client of tests/clients/mcp in a virtual environment, which
# is target/clients/mcp unless given. Does nothing when it is there already. What cannot be installed is no failure: the
# scene of the demo and the test that need it say so, and how to get it.
set -euo pipefail

say() { echo "mcp client: $*" >&2; }
missing() { say "$* (the demo leaves its scene out)"; exit 0; }

root=$(cd "$(dirname "$0")/.." && pwd)
src=$root/tests/clients/mcp
out=${1:-$root/target/clients/mcp}

command -v python3 >/dev/null || missing "python3 was not found: install Python 3.10 or newer, with venv"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  missing "$(python3 --version) is too old: install Python 3.10 or newer, with venv"

stamp=$({
  python3 -c 'import sys; print(sys.executable, sys.version)'
  cat "$src/requirements.txt" "$src/constraints.txt" "${BASH_SOURCE[0]}"
} | sha256sum | cut -d' ' -f1)
up_to_date() { [[ -x $out/bin/python && $(cat "$out/stamp" 2>/dev/null) == "$stamp" ]]; }
if up_to_date; then exit 0; fi

# One at a time: the second one waits, and then finds the work done.
mkdir -p "$out"
exec 9>"$out.lock"
flock 9
if up_to_date; then exit 0; fi

say "installing it in ${out#"$root"/}"
log=$out.log
rm -rf "$out"
if ! python3 -m venv "$out" >"$log" 2>&1; then
  missing "python3 has no venv: install it (Debian: apt install python3-venv); see ${log#"$root"/}"
fi
if ! "$out/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
  --requirement "$src/requirements.txt" --constraint "$src/constraints.txt" >>"$log" 2>&1; then
  missing "pip could not install it, which takes a network the first time: see ${log#"$root"/}"
fi
echo "$stamp" >"$out/stamp"
