#!/usr/bin/env bash
# How a run's time falls with threads: scaling.sh QUANTC [BENCH]
#
# Runs the whole process on the demo model (4 bit, 128 windows of 256 tokens, evaluation off) with the recipes `gptq` and `default` on 1, 2, 4, 8
# and 16 threads, in turns, twice, and prints Markdown: seconds on the clock and of processors of both rounds, the speed over one thread, and
# where the fewest and the most threads spent it. BENCH, the packed product's bench binary (`cargo bench --bench packed --no-run` says where it
# is), is run last in the time that is left. Ends within 150 seconds whatever the machine: what no longer fits is left out, and said so.
# Needs bash and the coreutils. Thread counts beyond the machine's processors are left out.
set -u; export LC_ALL=C
quantc=$(realpath "$1"); bench=${2:+$(realpath "$2")}
demo=$(realpath "$(dirname "$0")/../demo/model")
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
limit=${SCALING_SECONDS:-145}; rounds=${SCALING_ROUNDS:-2}; processors=$(nproc)
threads=(); for n in 1 2 4 8 16; do [ "$n" -le "$processors" ] && threads+=("$n"); done
TIMEFORMAT='%3R %3U %3S'
declare -A wall cpu json
left_out=0

run() { # RECIPE THREADS ROUND
    local key="$1 $2 $3" real user system left=$((limit - SECONDS))
    local command=(timeout -k 2 "$left" "$quantc" quantize "$demo" -o "$work/out" --force --no-evaluate
        --recipe "$1" --threads "$2" --quiet --export-json "$work/$1-$2-$3.json")
    [ "$left" -gt 2 ] || { left_out=$((left_out + 1)); return; }
    # The shell's own account: processor time of the process that it waited for.
    if { time "${command[@]}" >"$work/stdout" 2>"$work/stderr"; } 2>"$work/time"; then
        read -r real user system <"$work/time"
        # Milliseconds: there is no other arithmetic here.
        wall[$key]=$((10#${real/./}))
        cpu[$key]=$((10#${user/./} + 10#${system/./}))
    else
        left_out=$((left_out + 1))
        echo "failed: ${command[*]}"; cat "$work/stderr"
    fi
    rm -rf "$work/out" "$work/.out.journal"
}
seconds() { [ -n "${1-}" ] && printf '%d.%02d' $(($1 / 1000)) $(($1 % 1000 / 10)) || printf -- '-'; }
least() { local best=; for x in "$@"; do [ -n "$x" ] && { [ -z "$best" ] || [ "$x" -lt "$best" ]; } && best=$x; done; echo "$best"; }

echo "$processors processors; load before: $(cut -d' ' -f1-3 /proc/loadavg)"
while IFS=: read -r name value; do case $name in "model name"*) echo "processor:$value"; break;; esac; done </proc/cpuinfo
for ((round = 1; round <= rounds; round++)); do
    for n in "${threads[@]}"; do for recipe in gptq default; do run "$recipe" "$n" "$round"; done; done
done

all() { local which=$1 recipe=$2 n=$3 round; local -n table=$which; for ((round = 1; round <= rounds; round++)); do echo "${table[$recipe $n $round]-}"; done; }
each() { local text=; while read -r x; do text+="${text:+ / }$(seconds "$x")"; done; echo "$text"; }
echo
echo "| recipe | threads | clock s, each round | processor s, each round | speed over one thread |"
echo "|---|---|---|---|---|"
for recipe in gptq default; do
    one=$(least $(all wall "$recipe" 1))
    for n in "${threads[@]}"; do
        best=$(least $(all wall "$recipe" "$n"))
        ratio=-; [ -n "$one" ] && [ -n "$best" ] && ratio=$((one * 100 / best)) && ratio=$((ratio / 100)).$(printf %02d $((ratio % 100)))
        echo "| $recipe | $n | $(all wall "$recipe" "$n" | each) | $(all cpu "$recipe" "$n" | each) | $ratio |"
    done
done

# The report's phases: each is an object with a name, seconds on the clock, and seconds of processors.
phases() { # FILE
    local name= clock= line
    while IFS= read -r line; do
        line=${line#"${line%%[! ]*}"}; line=${line%,}
        case $line in
            '{' | '}') name= ;;
            '"name": '*) name=${line#*: }; clock= ;;
            '"wall_seconds": '*) clock=${line#*: } ;;
            '"cpu_seconds": '*) [ -n "$name" ] && [ -n "$clock" ] && printf '%s|%.2f|%.2f\n' "${name//\"/}" "$clock" "${line#*: }"; name= ;;
        esac
    done <"$1"
}
most=${threads[${#threads[@]} - 1]}
for recipe in gptq default; do
    a="$work/$recipe-1-1.json"; b="$work/$recipe-$most-1.json"
    [ -s "$a" ] && [ -s "$b" ] || continue
    echo
    echo "| $recipe: phase | clock s, 1 thread | processor s | clock s, $most threads | processor s |"
    echo "|---|---|---|---|---|"
    paste -d'|' <(phases "$a") <(phases "$b") | while IFS='|' read -r name clock1 cpu1 _ clock2 cpu2; do
        echo "| $name | $clock1 | $cpu1 | $clock2 | $cpu2 |"
    done
done

left=$((limit - SECONDS))
if [ -n "$bench" ] && [ "$left" -gt 5 ]; then
    echo; timeout "$left" "$bench" --bench || echo "the bench did not end in the $left s that were left"
fi
echo
echo "runs left out or failed: $left_out; $SECONDS s in all; load after: $(cut -d' ' -f1-3 /proc/loadavg)"
