#!/usr/bin/env bash
# sbom.sh: writes what the operator's program is made of, as CycloneDX, to target/sbom/vmcp-session.cdx.json, and holds it against
# the lock file. It is one for all processors that images are built for, as an image's digest is one for all. The same source gives
# the same bytes.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
version=0.5.9
tool=$root/target/tools/cargo-cyclonedx-$version
targets=(x86_64-unknown-linux-musl aarch64-unknown-linux-musl)
out=target/sbom/vmcp-session.cdx.json
cd "$root"

if [[ ! -x $tool/bin/cargo-cyclonedx ]]; then
  echo "sbom: installing cargo-cyclonedx $version"
  cargo install --locked --quiet --debug --version "$version" --root "$tool" cargo-cyclonedx
fi

# It writes beside each Cargo.toml, so it is shown a copy of what cargo reads.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/copy"
git ls-files -z --cached --others --exclude-standard -- '*.toml' '*.rs' Cargo.lock | xargs -0 cp --parents -t "$work/copy"
cargo metadata --locked --format-version 1 --manifest-path "$work/copy/Cargo.toml" >/dev/null
# With a date of its own there is no random serial number.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
for target in "${targets[@]}"; do
  PATH=$tool/bin:$PATH cargo cyclonedx -qq --format json --spec-version 1.5 --describe binaries --target "$target" \
    --manifest-path "$work/copy/Cargo.toml"
  sed "s|file://$work/copy|file:///build|g" "$work/copy/vmcp-session_bin.cdx.json" >"$work/$target.json"
  # Macros run on the machine that builds, which may need other crates than the one that the program is for.
  cargo tree --locked --package vmcp-session-operator --target "$target" --edges normal,build,no-proc-macro --prefix none \
    --format '{p}' >"$work/$target.tree"
done

mkdir -p "$(dirname "$out")"
python3 - "$out" "${targets[@]/#/$work/}" <<'CHECK'
import json, re, sys
out, *targets = sys.argv[1:]
sboms = []
for target in targets:
    with open(f"{target}.json") as file:
        sboms.append(json.load(file))
with open("Cargo.lock") as file:
    blocks = [dict(re.findall(r'^(name|version|checksum) = "(.*)"$', block, re.M)) for block in file.read().split("[[package]]")[1:]]
locked = {(block["name"], block["version"]): block.get("checksum") for block in blocks}
version = next(version for name, version in locked if name == "vmcp-session-operator")
wrong = []
for target, sbom in zip(targets, sboms):
    with open(f"{target}.tree") as file:
        built = {(name, rest[0].lstrip("v")) for name, *rest in (line.split() for line in file if line.strip())}
    missing = built - {(c["name"], c["version"]) for c in sbom["components"]} - {("vmcp-session-operator", version)}
    wrong += [f"{name} {number} is compiled for {target.rpartition('/')[2]}, and missing" for name, number in missing]

# What is in the one of any processor, and what each part needs on any.
sbom, *others = sboms
parts, needs = ({item[key]: item for item in sbom[of]} for of, key in [("components", "bom-ref"), ("dependencies", "ref")])
for other in others:
    for part in other["components"]:
        parts.setdefault(part["bom-ref"], part)
    for need in other["dependencies"]:
        on = set(need.get("dependsOn", [])) | set(needs.get(need["ref"], {}).get("dependsOn", []))
        needs[need["ref"]] = {"ref": need["ref"], **({"dependsOn": sorted(on)} if on else {})}
    # The target is one of them.
    sbom["metadata"]["properties"] += [item for item in other["metadata"]["properties"] if item not in sbom["metadata"]["properties"]]
sbom["components"] = [parts[ref] for ref in sorted(parts)]
sbom["dependencies"] = [needs[ref] for ref in sorted(needs)]

program = sbom["metadata"]["component"]
if (program["name"], program["version"]) != ("vmcp-session", version):
    wrong.append(f"it is about {program['name']} {program['version']}")
for part in sbom["components"]:
    key = (part["name"], part["version"])
    if key not in locked:
        wrong.append(f"{key[0]} {key[1]} is not in Cargo.lock")
    elif locked[key] and locked[key] not in [h["content"] for h in part.get("hashes", [])]:
        wrong.append(f"{key[0]} {key[1]} has another checksum")
if "serialNumber" in sbom or "/tmp/" in json.dumps(sbom):
    wrong.append("it says something of this machine")
for line in sorted(wrong):
    print("sbom:", line, file=sys.stderr)
with open(out, "w") as file:
    json.dump(sbom, file, indent=2, ensure_ascii=False)
    file.write("\n")
print(f"sbom: {len(sbom['components'])} dependencies of {program['name']} {program['version']}")
sys.exit(bool(wrong))
CHECK
