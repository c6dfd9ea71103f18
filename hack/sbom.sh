#!/usr/bin/env bash
# sbom.sh: writes what the operator's program is made of, as CycloneDX, to target/sbom/vmcp-session.cdx.json, and holds it against
# the lock file. The same source gives the same bytes.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
version=0.5.9
tool=$root/target/tools/cargo-cyclonedx-$version
target=x86_64-unknown-linux-musl
out=target/sbom/vmcp-session.cdx.json
cd "$root"

if [[ ! -x $tool/bin/cargo-cyclonedx ]]; then
  echo "sbom: installing cargo-cyclonedx $version"
  cargo install --locked --quiet --debug --version "$version" --root "$tool" cargo-cyclonedx
fi

# It writes beside each Cargo.toml, so it is shown a copy of what cargo reads.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git ls-files -z --cached --others --exclude-standard -- '*.toml' '*.rs' Cargo.lock | xargs -0 cp --parents -t "$work"
cargo metadata --locked --format-version 1 --manifest-path "$work/Cargo.toml" >/dev/null
# With a date of its own there is no random serial number.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)} PATH=$tool/bin:$PATH cargo cyclonedx -qq --format json \
  --spec-version 1.5 --describe binaries --target "$target" --manifest-path "$work/Cargo.toml"

mkdir -p "$(dirname "$out")"
sed "s|file://$work|file:///build|g" "$work/vmcp-session_bin.cdx.json" >"$out"
# Macros run on the machine that builds, which may need other crates than the one that the program is for.
cargo tree --locked --package vmcp-session-operator --target "$target" --edges normal,build,no-proc-macro --prefix none --format '{p}' >"$work/tree"
python3 - "$out" "$work/tree" <<'CHECK'
import json, re, sys
with open(sys.argv[1]) as file:
    sbom = json.load(file)
with open("Cargo.lock") as file:
    blocks = [dict(re.findall(r'^(name|version|checksum) = "(.*)"$', block, re.M)) for block in file.read().split("[[package]]")[1:]]
locked = {(block["name"], block["version"]): block.get("checksum") for block in blocks}
version = next(version for name, version in locked if name == "vmcp-session-operator")
with open(sys.argv[2]) as file:
    built = {(name, rest[0].lstrip("v")) for name, *rest in (line.split() for line in file if line.strip())}
program = sbom["metadata"]["component"]
parts = {(c["name"], c["version"]): c for c in sbom["components"]}
wrong = []
if (program["name"], program["version"]) != ("vmcp-session", version):
    wrong.append(f"it is about {program['name']} {program['version']}")
wrong += [f"{name} {version} is not in Cargo.lock" for name, version in parts.keys() - locked.keys()]
wrong += [f"{name} {version} is compiled, and missing" for name, version in built - parts.keys() - {("vmcp-session-operator", version)}]
wrong += [f"{key[0]} {key[1]} has another checksum" for key, part in parts.items() if locked.get(key)
          and locked[key] not in [h["content"] for h in part.get("hashes", [])]]
if "serialNumber" in sbom or "/tmp/" in json.dumps(sbom):
    wrong.append("it says something of this machine")
for line in sorted(wrong):
    print("sbom:", line, file=sys.stderr)
print(f"sbom: {len(parts)} dependencies of {program['name']} {program['version']}")
sys.exit(bool(wrong))
CHECK
