#!/usr/bin/env bash
# step.sh NAME COMMAND...: runs a command under its name and tells how long it took. A line for each step goes to the
# file that STEPS names, if it is set.
set -uo pipefail

name=$1
shift
bold='' plain=''
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then bold=$'\e[1m' plain=$'\e[0m'; fi

echo "${bold}==> $name${plain}"
started=$SECONDS
"$@"
code=$?
took="$((SECONDS - started)) s"
outcome=ok
if ((code != 0)); then outcome="FAILED (exit code $code)"; fi
echo "${bold}<== $name: $outcome, $took${plain}"
if [[ -n ${STEPS:-} ]]; then printf '%-48s %8s  %s\n' "$name" "$took" "$outcome" >>"$STEPS"; fi
exit "$code"
