#!/usr/bin/env bash
# fuzz.sh [SECONDS]: fuzzes each target of fuzz/ for so many seconds (30), starting from its corpus. What is found on the way
# is kept in target/fuzz-corpus, and is where the next run goes on; an input that breaks something is shown, and is kept in
# target/fuzz-artifacts. It belongs into fuzz/corpus then, where `make test` replays it.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
seconds=${1:-30}
version=0.13.2
tool=$root/target/tools/cargo-fuzz-$version

[[ $seconds =~ ^[1-9][0-9]*$ ]] || { echo "fuzz: $seconds is no number of seconds" >&2; exit 2; }
command -v c++ >/dev/null || { echo "fuzz: c++ was not found: libFuzzer is C++; install g++ (Debian: apt install g++)" >&2; exit 1; }
if [[ ! -x $tool/bin/cargo-fuzz ]]; then
  echo "fuzz: installing cargo-fuzz $version"
  cargo install --locked --quiet --debug --version "$version" --root "$tool" cargo-fuzz
fi

cd "$root"
# A stable compiler has no sanitizers. `unsafe` is forbidden here, so that they would find little: what is looked for are
# panics, overflows and lost bounds.
fuzz() { PATH=$tool/bin:$PATH cargo fuzz "$1" --dev --sanitizer none --target-dir target/fuzz "${@:2}"; }
# The lock file says which versions, as everywhere.
cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null
fuzz build
for target in parser dispatcher; do
  mkdir -p "target/fuzz-corpus/$target" "target/fuzz-artifacts/$target"
  fuzz run "$target" "target/fuzz-corpus/$target" "fuzz/corpus/$target" -- -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -max_len=65536 -print_final_stats=1 -verbosity=0 -artifact_prefix="$root/target/fuzz-artifacts/$target/"
done
