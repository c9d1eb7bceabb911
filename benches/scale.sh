#!/usr/bin/env bash
# What a run takes of memory at size: scale.sh QUANTC SYNTHETIC WORK [CASE]...
#
# QUANTC and SYNTHETIC are the program and `examples/synthetic`, WORK a folder that does not exist, with room for one checkpoint and its output at a
# time (the largest takes 6 GB, and 15 GB for what memory has no room for). For each CASE (all that are below, where none is named) it writes random
# checkpoints of a model's shapes with few layers, quantizes them without and with `--memory`, compares what was written where both ran, and prints
# Markdown: what `plan` expects, the least budget that is not refused, and the peak resident set. Vocabularies are cut to 8192 rows, whose embedding is
# written one piece after the other whatever its size. Needs bash and the coreutils.
set -eu; export LC_ALL=C
quantc=$(realpath "$1"); synthetic=$(realpath "$2"); work=$3; shift 3
cases=("$@"); [ ${#cases[@]} -gt 0 ] || cases=(growth context qwen3-30b-a3b llama-8b wide llama-70b)
mkdir "$work"; work=$(realpath "$work"); trap 'rm -rf "$work"' EXIT

llama() { # HIDDEN INTERMEDIATE HEADS KEY_VALUE_HEADS CONTEXT
    cat >"$work/config.json" <<END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": $1, "intermediate_size": $2, "num_attention_heads": $3,
 "num_key_value_heads": $4, "num_hidden_layers": 1, "max_position_embeddings": $5, "vocab_size": 8192, "rms_norm_eps": 1e-5,
 "rope_theta": 500000.0, "tie_word_embeddings": false, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2}
END
}
qwen3_moe() {
    cat >"$work/config.json" <<END
{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 32,
 "num_key_value_heads": 4, "head_dim": 128, "num_hidden_layers": 2, "max_position_embeddings": 40960, "vocab_size": 8192, "rms_norm_eps": 1e-6,
 "rope_theta": 1000000.0, "tie_word_embeddings": false, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "num_experts": 128,
 "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": []}
END
}
unguarded() { printf 'base = "gptq"\n[settings]\nguard = false\n' >"$work/unguarded.toml"; echo "$work/unguarded.toml"; }
number() { sed -n "s/^ *\"$1\": \([0-9.]*\),*$/\1/p" | tail -n 1; }
resources() { sed -n '/^  "resources": {/,/}/p' "$1"; }
megabytes() { [ -n "${1-}" ] && echo "$((${1%.*} / 1000000)) MB" || echo -; }

# One line of the table. NAME LAYERS SAMPLES CONTEXT BUDGET: no budget, "least", or a size. Leaves the sum of what was written in $written.
run() {
    local name=$1 layers=$2 samples=$3 context=$4 budget=$5 arguments least= memory=()
    [ -d "$work/model" ] || "$synthetic" "$work/config.json" "$work/model" "$layers"
    arguments=("$work/model" --recipe "${RECIPE:-gptq}" --samples "$samples" --context "$context" --calibration "${TEXT:-$work/model/calibration.jsonl}" --no-evaluate)
    "$quantc" plan "${arguments[@]}" --export-json "$work/plan.json" >"$work/log" 2>&1 || cat "$work/log"
    least=$("$quantc" quantize "${arguments[@]}" -o "$work/out" --memory 1KB 2>&1 | sed -n 's/.* or more (\([0-9]*\) bytes).*/\1/p' || true)
    case $budget in
        none) budget= ;;
        least) budget=$least ;;
    esac
    [ -z "$budget" ] || memory=(--memory "$budget")
    written=failed
    if "$quantc" quantize "${arguments[@]}" -o "$work/out" --quiet --export-json "$work/report.json" "${memory[@]}" >"$work/log" 2>&1; then
        written=$(cat "$work"/out/*.safetensors | sha256sum)
    else
        cat "$work/log"
    fi
    echo "| $name | $layers | $samples x $context | $(megabytes "$(number memory_bytes <"$work/plan.json")") | $(megabytes "$least") | $(megabytes "$budget") | $(megabytes "$(resources "$work/report.json" | number peak_rss_bytes)") | $(resources "$work/report.json" | number cpu_seconds | cut -d. -f1) |"
    rm -rf "$work/out" "$work/.out.journal" "$work/report.json"
}
# The same without and with a budget.
both() {
    local first
    run "$1" "$2" "$3" "$4" none; first=$written
    run "$1" "$2" "$3" "$4" "$5"
    [ "$written" = "$first" ] || echo "DIFFERENT BYTES with --memory: $1"
}
checkpoint_done() { rm -rf "$work/model"; }

echo "$(nproc) processors; load before: $(cut -d' ' -f1-3 /proc/loadavg)"
echo
echo "| shapes | layers | windows | plan expects | least budget | --memory | peak resident | processor s |"
echo "|---|---|---|---|---|---|---|---|"
for case in "${cases[@]}"; do
    case $case in
        growth) # What grows with the number of layers.
            llama 2048 5632 32 8 4096
            for layers in 1 2 4; do run "hidden 2048" "$layers" 4 256 none; run "hidden 2048" "$layers" 4 256 least; checkpoint_done; done ;;
        context) # Long windows: attention is computed in tiles.
            llama 512 1536 8 4 32768
            "$synthetic" "$work/config.json" "$work/model" 2
            for _ in 1 2 3 4; do seq 32768 | awk 'BEGIN { srand(7); printf "{\"input_ids\": [" } { printf "%s%d", (NR > 1 ? ", " : ""), 8192 ^ rand() } END { print "]}" }'; done >"$work/text.jsonl"
            TEXT=$work/text.jsonl both "hidden 512, 32k context" 2 4 32768 least; checkpoint_done ;;
        qwen3-30b-a3b) qwen3_moe; both "Qwen3-30B-A3B" 2 4 128 least; checkpoint_done ;;
        llama-8b) llama 4096 14336 32 8 8192; both "Llama 8B" 1 4 128 least; checkpoint_done ;;
        wide) # The widest Hessian of 70B in a layer that is else small.
            llama 1024 28672 8 2 8192; RECIPE=$(unguarded) run "down projection of 70B" 1 4 128 "${BUDGET:-least}"; checkpoint_done ;;
        llama-70b) # One factorization instead of five; set RECIPE=gptq for all.
            llama 8192 28672 64 8 8192
            RECIPE=${RECIPE:-$(unguarded)} run "Llama 70B" 1 4 128 "${BUDGET:-least}"; checkpoint_done ;;
        *) echo "unknown case $case" ;;
    esac
done
echo
echo "load after: $(cut -d' ' -f1-3 /proc/loadavg)"
