#!/usr/bin/env bash
# static.sh ARCH PACKAGE BINARY: builds a program of this workspace without any shared library, for amd64 or arm64, on either, and
# prints where it is. PROFILE is cargo's profile (release). The images hold what this builds, and so does the Dockerfile's.
#
# Rust brings musl and a linker; rustup adds the target. C is in two dependencies (ring, mimalloc), and needs a compiler that knows
# musl and the other processor: zig's, a package of PyPI, in a version of our choice. So the same source gives the same program
# on each machine with the same Rust, in whatever folder.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
profile=${PROFILE:-release}
arch=$1 package=$2 binary=$3

who=static
# shellcheck source=hack/parts.sh
source "$root/hack/parts.sh"

case $arch in
  amd64) cpu=x86_64 ;;
  arm64) cpu=aarch64 ;;
  *) fail "$arch is no processor that images are built for: amd64 or arm64" ;;
esac
target=$cpu-unknown-linux-musl
cd "$root"

sysroot=$(rustc --print sysroot) || fail "rustc was not found: install Rust from https://rustup.rs/"
host=$(rustc --version --verbose | sed -n 's/^host: //p')
if [[ ! -d $sysroot/lib/rustlib/$target ]]; then
  command -v rustup >/dev/null || fail "this Rust has no target $target, and there is no rustup to add it"
  rustup target add "$target" >&2 || fail "rustup could not add $target: see above"
fi

zig_compiler() {
  python3 -m venv "$1/venv" >&2 || fail "zig comes from PyPI: install Python 3 with venv (Debian: apt install python3-venv)"
  "$1/venv/bin/python3" -m pip install --quiet --disable-pip-version-check --only-binary :all: --target "$1" \
    --require-hashes --requirement hack/zig.txt >&2 || fail "pip could not install zig: see above"
  # Only pip needed it, and it cannot be moved.
  rm -rf "$1/venv"
  # As the crate `cc` calls compilers: with a name of the target that zig does not know.
  local name
  for name in x86_64 aarch64; do
    cat >"$1/cc-$name" <<CC
#!/usr/bin/env bash
arguments=()
for argument; do [[ \$argument == --target=* ]] || arguments+=("\$argument"); done
exec "\$(dirname "\$0")/ziglang/zig" cc -target $name-linux-musl "\${arguments[@]}"
CC
  done
  printf '#!/bin/sh\nexec "$(dirname "$0")/ziglang/zig" ar "$@"\n' >"$1/ar"
  chmod +x "$1"/cc-* "$1/ar"
}

zig=$tools/zig
# What is printed here is where the program is.
part zig "$(digest "${BASH_SOURCE[0]}" hack/zig.txt)" zig_compiler >&2

# What tells this folder from another one is taken out of the program.
rustflags=(-Clinker="$sysroot/lib/rustlib/$host/bin/rust-lld")
cflags=(-fno-sanitize=all -g0)
for move in "$sysroot=/rust" "${CARGO_HOME:-$HOME/.cargo}=/cargo" "$root=/build"; do
  rustflags+=("--remap-path-prefix=$move")
  cflags+=("-ffile-prefix-map=$move")
done

name=${target//-/_}
export "CC_$name=$zig/cc-$cpu" "AR_$name=$zig/ar" "CFLAGS_$name=${cflags[*]}"
export CARGO_ENCODED_RUSTFLAGS
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; echo "${rustflags[*]}")
# An image needs no symbols, in whatever profile.
upper=${profile^^}
export "CARGO_PROFILE_${upper//-/_}_STRIP=symbols" "CARGO_PROFILE_${upper//-/_}_DEBUG=false"
cargo build --locked --quiet --profile "$profile" --target "$target" --package "$package" --bin "$binary" >&2
echo "${CARGO_TARGET_DIR:-$root/target}/$target/$([[ $profile == dev ]] && echo debug || echo "$profile")/$binary"
