#!/usr/bin/env bash
# image-check.sh: builds the image once more, from a copy of the source in another folder, and compares the two. The copy has what
# the Dockerfile's build is shown, so this also says that it is enough. PROFILE is cargo's profile.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mapfile -t shown < <(sed -n 's/^!//p' .dockerignore)
mkdir -p "$work/copy/target" target/tools
git ls-files -z --cached --others --exclude-standard -- "${shown[@]}" hack/image.sh | xargs -0 cp --parents -t "$work/copy"
# The compiler of C is large, and is not what is compared.
ln -s "$root/target/tools" "$work/copy/target/tools"

# The copy is in no repository, so the image names no commit.
export SOURCE_DATE_EPOCH=0 GIT_DIR=/nowhere
n=0
for folder in "$root" "$work/copy"; do
  IMAGE_OUT=$work/image.$((++n)).tar bash "$folder/hack/image.sh" vmcp-session-operator vmcp-session
done
cmp "$work"/image.{1,2}.tar
echo "image-check: both are the same, byte for byte"
