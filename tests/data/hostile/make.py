"""Makes the hostile files in files/ from the sound models in sound/, and the list of them, index.tsv, without messages:

    python make.py
    QUANTC_WRITE_INDEX=1 cargo test --test hostile    # fills in the messages; read the difference before it is committed

Names say what is wrong. Everything is a function of this file and of sound/.
"""

import json
import shutil
import struct
from pathlib import Path

HERE = Path(__file__).parent
ROWS = []


def put(reader, name, content, variant="-"):
    folder = HERE / "files" / reader
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    assert not path.exists(), path
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    ROWS.append((f"{reader}/{name}", reader, variant))


def u32(n):
    return struct.pack("<I", n)


def u64(n):
    return struct.pack("<Q", n)


def st(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return u64(len(text) if length is None else length) + text + data


def entry(dtype="U8", shape=(4,), begin=0, end=4, **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def safetensors():
    p = lambda name, content: put("safetensors", name, content)
    one = lambda data=b"abcd", **k: st({"w": entry(**k)}, data)
    p("empty", b"")
    p("three-bytes", b"\1\2\3")
    p("header-longer-than-any-file", u64(2**64 - 1))
    p("header-above-the-limit", u64(100_000_001))
    p("header-longer-than-the-file", u64(100_000_000))
    p("header-one-byte-too-long", st("{}", length=3))
    p("header-empty", st(""))
    p("header-begins-with-space", st(" {}"))
    p("header-is-a-list", st("[]"))
    p("header-is-a-number", st("1"))
    p("header-unclosed", st("{"))
    p("header-with-a-tail", st("{}x"))
    p("header-nested-lists", st(b'{"w":' + b"[" * 20000))
    p("header-nested-objects", st(b'{"a":' * 4000))
    p("header-not-utf8", st(b'{"\xff":1}'))
    p("header-name-with-lone-surrogate", st('{"\\ud800":' + json.dumps(entry()) + "}", b"abcd"))
    p("header-utf16", st('{"w":1}'.encode("utf-16")))
    p("header-with-nul", st(b"{\0}"))
    p("data-after-the-last-tensor", st("{}", b"abc"))
    p("data-too-short", one(b"abc"))
    p("data-too-long", one(b"abcde"))
    p("tensors-overlap-wholly", st({"w": entry(), "v": entry()}, b"abcd"))
    p("tensors-overlap-by-one", st({"w": entry(), "v": entry(shape=(2,), begin=3, end=5)}, b"abcde"))
    p("tensors-leave-a-hole", st({"w": entry(), "v": entry(shape=(1,), begin=5, end=6)}, b"abcdef"))
    p("first-tensor-not-at-zero", one(b"xabcd", begin=1, end=5))
    p("tensor-twice", st('{"w":%s,"w":%s}' % ((json.dumps(entry()),) * 2), b"abcd"))
    p("metadata-twice", st('{"__metadata__":{},"__metadata__":{}}'))
    p("metadata-key-twice", st('{"__metadata__":{"a":"b","a":"c"}}'))
    p("metadata-number", st({"__metadata__": {"a": 1}}))
    p("metadata-list", st({"__metadata__": []}))
    p("metadata-null", st({"__metadata__": None}))
    p("shape-does-not-fit-bytes", one(dtype="F32"))
    p("shape-negative", one(shape=(-4,)))
    p("shape-fraction", st('{"w":{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}}', b"abcd"))
    p("shape-text", one(shape=("4",)))
    p("shape-null", st('{"w":{"dtype":"U8","shape":null,"data_offsets":[0,4]}}', b"abcd"))
    p("shape-product-overflows", one(b"", shape=(2**32, 2**32), end=0))
    p("shape-bytes-overflow", one(b"", dtype="F64", shape=(2**61,), end=0))
    p("shape-beyond-64-bit", one(b"", shape=(2**65,), end=0))
    p("shape-zero-times-huge", one(b"", shape=(0, 2**63, 2), end=0))
    p("offsets-reversed", one(begin=4, end=0))
    p("offsets-beyond-any-file", one(b"", shape=(2**64 - 1,), end=2**64 - 1))
    p("offsets-sum-overflows", st({"w": entry(shape=(1,), begin=2**64 - 2, end=2**64 - 1)}))
    p("offsets-three", st('{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,2,4]}}', b"abcd"))
    p("offsets-one", st('{"w":{"dtype":"U8","shape":[4],"data_offsets":[0]}}', b"abcd"))
    p("offsets-missing", st('{"w":{"dtype":"U8","shape":[4]}}', b"abcd"))
    p("offsets-negative", one(begin=-4, end=0))
    p("offsets-exponent", st('{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4e0]}}', b"abcd"))
    p("type-unknown", one(dtype="Q4"))
    p("type-lower-case", one(dtype="u8"))
    p("type-empty", one(dtype=""))
    p("type-number", st('{"w":{"dtype":8,"shape":[4],"data_offsets":[0,4]}}', b"abcd"))
    p("type-missing", st('{"w":{"shape":[4],"data_offsets":[0,4]}}', b"abcd"))
    p("type-twice", st('{"w":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}}', b"abcd"))
    p("tensor-is-a-number", st({"w": 7}))
    p("tensor-is-a-list", st({"w": []}))
    p("tensor-is-null", st({"w": None}))
    p("values-nan", one(struct.pack("<f", float("nan")), dtype="F32", shape=(1,)))
    p("values-infinite", one(struct.pack("<f", float("-inf")), dtype="F32", shape=(1,)))
    p("values-half-infinite", one(b"\0\0\0\x7c", dtype="F16", shape=(1, 2)))
    p("values-bfloat-nan", one(b"\0\0\xc0\x7f", dtype="BF16", shape=(2, 1)))
    p("pickle", b"\x80\x04\x95\x1c\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.")
    p("zip", b"PK\3\4" + b"\0" * 60)
    p("html", "<!DOCTYPE html><html><body>404</body></html>")
    p("lfs-pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123\n")


def index():
    p = lambda name, content: put("index", name, content if isinstance(content, (bytes, str)) else json.dumps(content))
    w = lambda **m: {"weight_map": {k: v for k, v in m.items()}}
    p("empty", b"")
    p("not-json", "nonsense")
    p("without-map", {})
    p("map-is-a-list", {"weight_map": []})
    p("map-is-null", {"weight_map": None})
    p("map-to-a-number", w(a=1))
    p("map-empty", {"weight_map": {}})
    p("tensor-twice", '{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}')
    p("parent-directory", w(a="../1.safetensors", b="2.safetensors"))
    p("absolute-path", w(a="/etc/passwd", b="2.safetensors"))
    p("device", w(a="/dev/zero"))
    p("sub-directory", w(a="sub/1.safetensors"))
    p("dot", w(a="."))
    p("dots", w(a=".."))
    p("name-empty", w(a=""))
    p("name-with-nul", w(a="1.safetensors\0"))
    p("backslash", w(a="..\\1.safetensors"))
    p("drive", w(a="C:1.safetensors"))
    p("url", w(a="https://example.org/1.safetensors"))
    p("name-too-long", w(a="x" * 5000))
    p("file-missing", w(a="1.safetensors", b="3.safetensors"))
    p("tensor-missing", w(a="1.safetensors", c="2.safetensors"))
    p("tensor-not-listed", w(a="1.safetensors", b="1.safetensors"))
    p("files-exchanged", w(a="2.safetensors", b="1.safetensors"))
    p("names-itself", w(a="model.safetensors.index.json"))
    p("nested", '{"metadata":' + "[" * 5000)
    p("not-utf8", b'{"weight_map":{"\xff":"1.safetensors"}}')
    p("not-utf8-name", b'{"weight_map":{"a":"\xff"}}')


def sound(name, file="config.json"):
    return (HERE / "sound" / name / file).read_bytes()


def config():
    base = json.loads(sound("dense"))

    def p(name, drop=(), **changes):
        put("config", name, json.dumps({k: v for k, v in {**base, **changes}.items() if k not in drop}))

    put("config", "empty", "")
    put("config", "list", "[]")
    put("config", "null", "null")
    put("config", "text", '"config"')
    put("config", "unclosed", sound("dense")[:100])
    put("config", "tail", sound("dense") + b"}")
    put("config", "nested", '{"a":' * 5000)
    put("config", "nested-lists-beside", sound("dense")[:-2] + b',"x":' + b"[" * 200 + b"]" * 200 + b"}")
    put("config", "not-utf8", b'{"model_type":"\xff"}')
    put("config", "byte-order-mark", b"\xef\xbb\xbf" + sound("dense"))
    put("config", "pickle", b"\x80\x04\x95.")
    put("config", "number-beyond-range", '{"model_type":"llama","hidden_size":1e999}')
    p("type-missing", drop=["model_type"])
    p("type-null", model_type=None)
    p("type-number", model_type=7)
    p("type-unknown", model_type="../../etc/passwd")
    p("type-escape-codes", model_type="\x1b[2J\x1b]0;owned\x07")
    p("type-very-long", model_type="x" * 20000)
    p("remote-code", model_type="custom", auto_map={"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"})
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings"]:
        p(f"{key}-missing", drop=[key])
        p(f"{key}-zero", **{key: 0})
        p(f"{key}-negative", **{key: -1})
        p(f"{key}-huge", **{key: 2**63})
        p(f"{key}-text", **{key: "32"})
    p("hidden_size-fraction", hidden_size=32.5)
    p("hidden_size-largest", hidden_size=2**24)
    p("vocab_size-larger-than-the-embedding", vocab_size=105)
    p("vocab_size-smaller-than-the-embedding", vocab_size=103)
    p("layers-one-more", num_hidden_layers=2)
    p("layers-most", num_hidden_layers=1024)
    p("layers-most-of-an-unknown-architecture", model_type="llam1", num_hidden_layers=1024)
    experts = {"model_type": "qwen3_moe", "head_dim": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_hidden_layers": 1024}
    p("experts-most", **experts, num_experts=64)
    p("experts-above-the-most", **experts, num_experts=65)
    p("heads-do-not-divide", num_attention_heads=3)
    p("key-value-heads-do-not-divide", num_attention_heads=4, num_key_value_heads=3)
    p("key-value-heads-zero", num_key_value_heads=0)
    p("key-value-heads-more-than-heads", num_key_value_heads=4)
    p("head-odd", head_dim=15)
    p("head-huge", head_dim=2**24, num_attention_heads=2**24)
    p("eps-zero", rms_norm_eps=0)
    p("eps-negative", rms_norm_eps=-1e-5)
    p("eps-text", rms_norm_eps="small")
    p("eps-huge", rms_norm_eps=1e308)
    p("activation-unknown", hidden_act="__import__('os').system('true')")
    p("activation-list", hidden_act=["silu"])
    p("bias-number", attention_bias=1)
    p("bias-without-tensors", attention_bias=True)
    p("tied-text", tie_word_embeddings="false")
    p("untied-without-head", tie_word_embeddings=False)
    p("dtype-number", dtype=16)
    p("theta-zero", rope_theta=0)
    p("theta-negative", rope_theta=-10000.0)
    p("theta-text", rope_theta="10000")
    p("rope-list", rope_parameters=[])
    p("rope-kind-unknown", rope_parameters={"rope_type": "spiral"})
    p("rope-kind-number", rope_parameters={"rope_type": 1})
    p("rope-factor-missing", rope_parameters={"rope_type": "linear"})
    p("rope-factor-zero", rope_parameters={"rope_type": "linear", "factor": 0})
    p("rope-factors-too-few", rope_parameters={"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]})
    p("rope-factors-infinite", rope_parameters={"rope_type": "longrope", "short_factor": [1e308] * 8, "long_factor": ["inf"] * 8})
    p("rope-original-context-zero", rope_parameters={"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0})
    p("rope-frequencies-reversed", rope_parameters={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0})
    p("rope-two-that-differ", rope_parameters={"rope_type": "default"}, rope_scaling={"type": "linear", "factor": 2.0})
    p("rope-for-kinds-of-layers", rope_parameters={"full_attention": {"rope_type": "default"}})
    p("rope-partial-above-one", rope_parameters={"rope_type": "default", "partial_rotary_factor": 1.5})
    p("rope-partial-tiny", rope_parameters={"rope_type": "default", "partial_rotary_factor": 1e-9})
    p("window-zero", model_type="mistral", sliding_window=0)
    p("layer-types-too-few", model_type="qwen2", use_sliding_window=True, sliding_window=8, layer_types=[])
    p("layer-types-unknown", model_type="qwen2", use_sliding_window=True, sliding_window=8, layer_types=["x"])


def changed(base, path, value):
    """`base` with the value at `path` set, or removed where it is ..."""
    copy = json.loads(json.dumps(base))
    place = copy
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copy


def quantization():
    def p(variant, name, *changes):
        document = json.loads(sound(variant))
        for path, value in changes:
            document = changed(document, path, value)
        put("quantization", f"{variant}-{name}", json.dumps(document), variant)

    q = "quantization_config"
    p("gptq", "not-an-object", ([q], 4))
    p("gptq", "list", ([q], []))
    p("gptq", "method-unknown", ([q, "quant_method"], "zip"))
    p("gptq", "method-missing", ([q, "quant_method"], ...), ([q, "method"], ...))
    p("gptq", "method-number", ([q, "quant_method"], 4))
    for name, value in [("missing", ...), ("zero", 0), ("nine", 9), ("five", 5), ("negative", -4), ("fraction", 4.5), ("text", "4"), ("huge", 2**64)]:
        p("gptq", f"bits-{name}", ([q, "bits"], value))
    for name, value in [("missing", ...), ("zero", 0), ("one", 1), ("minus-two", -2), ("huge", 2**63), ("not-a-divisor", 48), ("larger-than-rows", 1024), ("text", "all")]:
        p("gptq", f"group-{name}", ([q, "group_size"], value))
    p("gptq", "sym-text", ([q, "sym"], "yes"))
    p("gptq", "asymmetric", ([q, "sym"], False))
    p("gptq", "columns-out-of-order", ([q, "desc_act"], True))
    p("gptq", "three-bit", ([q, "bits"], 3))
    p("gptq", "eight-bit", ([q, "bits"], 8))
    p("gptq", "rules-broken-pattern", ([q, "dynamic"], {"+:(": {"bits": 8}}))
    p("gptq", "rules-huge-pattern", ([q, "dynamic"], {"+:" + "(a{1000}){1000}": {"bits": 8}}))
    p("gptq", "rules-list", ([q, "dynamic"], [1]))
    p("gptq", "rules-bits-nine", ([q, "dynamic"], {"+:.*q_proj.*": {"bits": 9}}))
    p("gptq", "layout-unknown", ([q, "checkpoint_format"], "marlin"), ([q, "format"], "marlin"))
    p("awq", "bits-three", ([q, "bits"], 3))
    p("awq", "bits-text", ([q, "bits"], "four"))
    p("awq", "version-unknown", ([q, "version"], "gemv"))
    p("awq", "group-zero", ([q, "group_size"], 0))
    p("awq", "skip-number", ([q, "modules_to_not_convert"], 3))
    group = [q, "config_groups", "group_0"]
    ct = "compressed-tensors"
    p(ct, "groups-missing", ([q, "config_groups"], ...))
    p(ct, "groups-list", ([q, "config_groups"], []))
    p(ct, "groups-empty", ([q, "config_groups"], {}))
    p(ct, "weights-missing", (group + ["weights"], ...))
    p(ct, "weights-null", (group + ["weights"], None))
    p(ct, "bits-zero", (group + ["weights", "num_bits"], 0))
    p(ct, "type-float", (group + ["weights", "type"], "float"))
    p(ct, "strategy-unknown", (group + ["weights", "strategy"], "tensor_group"))
    p(ct, "group-negative", (group + ["weights", "group_size"], -7))
    p(ct, "targets-missing", (group + ["targets"], ...))
    p(ct, "targets-number", (group + ["targets"], [1]))
    p(ct, "targets-broken-pattern", (group + ["targets"], ["re:("]))
    p(ct, "targets-huge-pattern", (group + ["targets"], ["re:(((a{100}){100}){100})"]))
    p(ct, "ignore-number", ([q, "ignore"], 1))
    p(ct, "format-unknown", ([q, "format"], "zip"))
    p(ct, "transform", ([q, "transform_config"], {"a": 1}))
    p(ct, "sparsity", ([q, "sparsity_config"], {"format": "sparse-24-bitmask"}))
    p(ct, "inputs-quantized", (group + ["input_activations"], {"num_bits": 8}))
    p(ct, "outputs-quantized", (group + ["output_activations"], {"num_bits": 8}))
    both = lambda name, key, value: p("mlx", name, (["quantization", key], value), ([q, key], value))
    both("bits-seven", "bits", 7)
    both("bits-null", "bits", None)
    both("group-31", "group_size", 31)
    both("mode-unknown", "mode", "mxfp9")
    p("mlx", "two-that-differ", (["quantization", "bits"], 8))
    p("nf4", "kind-unknown", ([q, "bnb_4bit_quant_type"], "nf5"))
    p("nf4", "kind-fp4", ([q, "bnb_4bit_quant_type"], "fp4"))
    p("nf4", "eight-bit", ([q, "load_in_8bit"], True), ([q, "load_in_4bit"], False))
    p("nf4", "storage-unknown", ([q, "bnb_4bit_quant_storage"], "float128"))
    p("nf4", "double", ([q, "bnb_4bit_use_double_quant"], True))
    p("w8a8-fp8", "bits-four", (group + ["weights", "num_bits"], 4))
    p("w8a8-fp8", "dynamic-text", (group + ["input_activations", "dynamic"], "maybe"))


def parse(content):
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    header.pop("__metadata__", None)
    return {name: (e["dtype"], e["shape"], data[e["data_offsets"][0] : e["data_offsets"][1]]) for name, e in header.items()}


def build(tensors, metadata=None):
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return st(json.dumps(header, separators=(",", ":")), data)


def difference(tensors, original):
    """The tensors that differ; the names of those that are gone stand in the metadata. tests/hostile/readers.rs puts the rest beside."""
    gone = sorted(set(original) - set(tensors))
    changed_ = {name: tensor for name, tensor in tensors.items() if original.get(name) != tensor}
    return build(changed_, {"without": " ".join(gone)} if gone else None)


Q = "model.layers.0.self_attn.q_proj."


def packed():
    def p(variant, name, change):
        tensors = parse(sound(variant, "model.safetensors"))
        change(tensors)
        put("packed", f"{variant}-{name}", difference(tensors, parse(sound(variant, "model.safetensors"))), variant)

    def without(name):
        return lambda tensors: tensors.pop(name)

    def typed(name, dtype):
        def change(tensors):
            _, shape, content = tensors[name]
            tensors[name] = (dtype, shape, content)
        return change

    def shaped(name, shape):
        def change(tensors):
            dtype, _, content = tensors[name]
            tensors[name] = (dtype, shape, content)
        return change

    def fill(name, piece):
        def change(tensors):
            dtype, shape, content = tensors[name]
            tensors[name] = (dtype, shape, (piece * len(content))[: len(content)])
        return change

    def first(name, piece):
        def change(tensors):
            dtype, shape, content = tensors[name]
            tensors[name] = (dtype, shape, piece + content[len(piece) :])
        return change

    def resized(name, shape, content):
        def change(tensors):
            tensors[name] = (tensors[name][0], shape, content)
        return change

    nan, infinite = b"\x01\x7e", b"\0\x7c"
    p("gptq", "no-codes", without(Q + "qweight"))
    p("gptq", "no-scales", without(Q + "scales"))
    p("gptq", "no-zero-points", without(Q + "qzeros"))
    p("gptq", "codes-as-floats", typed(Q + "qweight", "F32"))
    p("gptq", "codes-transposed", shaped(Q + "qweight", [32, 4]))
    p("gptq", "codes-flat", shaped(Q + "qweight", [128]))
    p("gptq", "codes-empty", resized(Q + "qweight", [0, 32], b""))
    p("gptq", "scale-nan", first(Q + "scales", nan))
    p("gptq", "scale-infinite", first(Q + "scales", infinite))
    p("gptq", "scales-zero", fill(Q + "scales", b"\0"))
    p("gptq", "scales-negative", fill(Q + "scales", b"\0\xbc"))
    p("gptq", "scales-subnormal", fill(Q + "scales", b"\1\0"))
    p("gptq", "scales-as-integers", lambda t: t.update({Q + "scales": ("I32", [1, 32], b"\1\0\0\0" * 32)}))
    p("gptq", "zero-points-all-bits", fill(Q + "qzeros", b"\xff"))
    p("gptq", "zero-points-no-bits", fill(Q + "qzeros", b"\0"))
    p("gptq", "columns-negative", lambda t: t.update({Q + "g_idx": ("I32", [32], b"\xff" * 128)}))
    p("gptq", "columns-beyond-groups", lambda t: t.update({Q + "g_idx": ("I32", [32], u32(2**31 - 1) * 32)}))
    p("gptq", "columns-too-few", lambda t: t.update({Q + "g_idx": ("I32", [1], u32(0))}))
    p("gptq", "embedding-missing", without("model.embed_tokens.weight"))
    p("gptq", "norm-as-integers", typed("model.norm.weight", "I16"))
    p("gptq", "dense-and-packed", lambda t: t.update({Q + "weight": ("F16", [32, 32], b"\0" * 2048)}))
    p("awq", "codes-missing", without(Q + "qweight"))
    p("awq", "zero-points-missing", without(Q + "qzeros"))
    p("awq", "scale-nan", first(Q + "scales", nan))
    p("awq", "codes-short", resized(Q + "qweight", [31, 4], b"\0" * 31 * 16))
    ct = "compressed-tensors"
    p(ct, "shape-lies", first(Q + "weight_shape", u64(2**63)))
    p(ct, "shape-negative", first(Q + "weight_shape", b"\xff" * 8))
    p(ct, "shape-missing", without(Q + "weight_shape"))
    p(ct, "scale-infinite", first(Q + "weight_scale", b"\x80\x7f"))
    p(ct, "groups-out-of-order", lambda t: t.update({Q + "weight_g_idx": ("I32", [32], b"\0" * 128)}))
    p("mlx", "biases-missing", without(Q + "biases"))
    p("mlx", "bias-nan", first(Q + "biases", b"\xc0\x7f"))
    p("mlx", "scales-zero", fill(Q + "scales", b"\0"))
    p("mlx", "codes-as-bytes", lambda t: t.update({Q + "weight": ("U8", [32, 16], t[Q + "weight"][2])}))
    p("nf4", "absmax-missing", without(Q + "weight.absmax"))
    p("nf4", "absmax-nan", first(Q + "weight.absmax", b"\0\0\xc0\x7f"))
    p("nf4", "map-damaged", fill(Q + "weight.quant_map", b"\0\0\x80\x3f"))
    state = Q + "weight.quant_state.bitsandbytes__nf4"
    p("nf4", "state-missing", without(state))
    p("nf4", "state-not-json", fill(state, b"{"))
    p("nf4", "state-deep", resized(state, [4000], b"[" * 4000))
    p("w8a8-fp8", "codes-nan", fill(Q + "weight", b"\x7f"))
    p("w8a8-fp8", "scale-negative-infinity", first(Q + "weight_scale", b"\x80\xff"))
    p("w8a8-fp8", "codes-as-integers", typed(Q + "weight", "I8"))


def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return u64(len(value)) + value


def gguf_file(values, tensors, data=b"", version=3, magic=b"GGUF", counts=None):
    """values: (key, type, bytes); tensors: (name, dimensions, type, offset)."""
    count = counts or (len(tensors), len(values))
    head = magic + u32(version) + u64(count[0]) + u64(count[1])
    head += b"".join(text(key) + u32(kind) + content for key, kind, content in values)
    head += b"".join(text(n) + u32(len(d)) + b"".join(map(u64, d)) + u32(k) + u64(o) for n, d, k, o in tensors)
    return head + b"\0" * (-len(head) % 32) + data


def gguf():
    p = lambda name, content: put("gguf", name, content)
    one = [("general.architecture", 8, text("llama"))]
    p("empty", b"")
    p("magic-only", b"GGUF")
    p("ggml", b"ggml" + u32(1) * 8)
    p("version-one", gguf_file([], [], version=1))
    p("version-big-endian", b"GGUF" + struct.pack(">I", 3) + b"\0" * 16)
    p("values-beyond-the-file", gguf_file([], [], counts=(0, 2**64 - 1)))
    p("tensors-beyond-the-file", gguf_file([], [], counts=(2**64 - 1, 0)))
    p("key-longer-than-the-file", b"GGUF" + u32(3) + u64(0) + u64(1) + u64(2**63) + b"abc")
    p("key-not-utf8", gguf_file([(b"\xff\xfe", 4, u32(1))], []))
    p("key-twice", gguf_file(one * 2, []))
    p("value-of-unknown-type", gguf_file([("a", 99, b"")], []))
    p("array-of-unknown-type", gguf_file([("a", 9, u32(99) + u64(1))], []))
    p("array-of-arrays", gguf_file([("a", 9, u32(9) + u64(1) + u32(4) + u64(1) + u32(1))], []))
    p("array-longer-than-the-file", gguf_file([("a", 9, u32(4) + u64(2**61))], []))
    p("array-length-overflows", gguf_file([("a", 9, u32(10) + u64(2**62))], []))
    p("array-of-texts-longer-than-the-file", gguf_file([("a", 9, u32(8) + u64(2**40) + text("x"))], []))
    p("text-longer-than-the-file", gguf_file([("a", 8, u64(2**40) + b"x")], []))
    p("text-not-utf8", gguf_file([("general.architecture", 8, text(b"\xff"))], []))
    p("alignment-zero", gguf_file([("general.alignment", 4, u32(0))], []))
    p("alignment-three", gguf_file([("general.alignment", 4, u32(3))], []))
    p("alignment-huge", gguf_file([("general.alignment", 10, u64(2**63))], []))
    p("alignment-text", gguf_file([("general.alignment", 8, text("32"))], []))
    tensor = lambda name="t", dims=(4,), kind=0, offset=0, data=b"\0" * 32: gguf_file(one, [(name, dims, kind, offset)], data)
    p("tensor-name-empty", tensor(name=""))
    p("tensor-name-long", tensor(name="x" * 64))
    p("tensor-name-huge", tensor(name="x" * 4000))
    p("tensor-without-dimensions", tensor(dims=()))
    p("tensor-of-five-dimensions", tensor(dims=(1, 1, 1, 1, 1)))
    p("tensor-of-unknown-type", tensor(kind=77))
    p("tensor-shape-overflows", tensor(dims=(2**32, 2**32, 2**32)))
    p("tensor-row-overflows", tensor(dims=(2**63,)))
    p("tensor-zero-rows-of-huge", tensor(dims=(2**62, 0), data=b""))
    p("tensor-of-none-and-huge", tensor(dims=(32, 0, 2**40, 2**40), kind=2, data=b""))
    p("tensor-beyond-the-file", tensor(dims=(64,)))
    p("tensor-offset-beyond-the-file", tensor(offset=2**40))
    p("tensor-offset-overflows", tensor(offset=2**64 - 32))
    p("tensor-offset-unaligned", tensor(offset=1))
    p("tensor-rows-not-whole", tensor(dims=(33,), kind=2))
    p("tensor-twice", gguf_file(one, [("t", (4,), 0, 0), ("t", (4,), 0, 32)], b"\0" * 64))
    p("tensors-overlap", gguf_file(one, [("t", (16,), 0, 0), ("u", (4,), 0, 32)], b"\0" * 64))
    p("architecture-missing", gguf_file([], []))
    p("architecture-number", gguf_file([("general.architecture", 4, u32(1))], []))
    p("architecture-unknown", gguf_file([("general.architecture", 8, text("mamba"))], []))
    p("numbers-missing", gguf_file(one, []))
    numbers = {"attention.head_count": 2, "embedding_length": 32, "context_length": 64, "feed_forward_length": 64, "block_count": 1}
    embedding = ("token_embd.weight", (32, 4), 0, 0)

    def model(name, tensors=(embedding,), data=b"\0" * 512, more=(), **changes):
        given = {**numbers, **{key.replace("__", "."): value for key, value in changes.items()}}
        values = one + [("llama." + key, 4, u32(value)) for key, value in given.items() if value is not None]
        p(name, gguf_file(values + list(more), list(tensors), data))

    model("model-without-embedding", tensors=())
    model("model-embedding-only")
    model("model-heads-zero", attention__head_count=0)
    model("model-heads-huge", attention__head_count=2**32 - 1)
    model("model-layers-zero", block_count=0)
    model("model-layers-huge", block_count=2**32 - 1)
    model("model-hidden-zero", embedding_length=0)
    model("model-hidden-huge", embedding_length=2**32 - 1)
    model("model-hidden-missing", embedding_length=None)
    model("model-eps-nan", more=[("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", float("nan")))])
    model("model-base-negative", more=[("llama.rope.freq_base", 6, struct.pack("<f", -1.0))])
    model("model-scaling-unknown", more=[("llama.rope.scaling.type", 8, text("spiral"))])
    model("model-embedding-packed", tensors=[("token_embd.weight", (32, 4), 2, 0)], data=b"\0" * 96)
    model("model-embedding-flat", tensors=[("token_embd.weight", (128,), 0, 0)])
    model("model-factors-empty", tensors=[embedding, ("rope_freqs.weight", (0,), 0, 512)])
    model("model-factors-huge", tensors=[embedding, ("rope_freqs.weight", (2**20,), 0, 512)])
    model("model-factors-zero", tensors=[embedding, ("rope_freqs.weight", (8,), 0, 512)], data=b"\0" * 544)
    whole = sound("q4_0", "model-q4_0.gguf")
    p("truncated-in-the-values", whole[:300])
    p("truncated-in-the-data", whole[:-1])
    at = whole.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight")
    p("rows-of-another-width", whole[: at + 4] + u64(64) + u64(16) + whole[at + 20 :])
    at = whole.index(b"llama.attention.head_count") + len("llama.attention.head_count") + 4
    p("heads-of-another-size", whole[:at] + u32(32) + whole[at + 4 :])


def varint(n):
    out = b""
    n &= 2**64 - 1
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def onnx():
    p = lambda name, content: put("onnx", name, content)

    def initializer(name="w", dims=(2, 2), kind=1, location="model.onnx.data", offset="0", length="16", external=1):
        pairs = [("location", location), ("offset", offset), ("length", length)]
        return b"".join(field(1, d) for d in dims) + field(2, kind) + field(8, name) + b"".join(
            field(13, field(1, k) + field(2, v)) for k, v in pairs if v is not None) + field(14, external)

    def graph(*tensors):
        return field(1, 8) + field(7, b"".join(field(5, tensor) for tensor in tensors))

    p("empty", b"")
    p("noise", bytes(range(256)))
    p("without-graph", field(1, 8))
    p("length-beyond-the-file", b"\x3a\xff\xff\xff\xff\x0f")
    p("varint-without-end", b"\x3a" + b"\xff" * 20)
    deep = b""
    for _ in range(300):
        deep = field(7, deep)
    p("nested", deep)
    p("groups-nested", b"\x3b" * 500)
    p("text-not-utf8", field(7, field(5, field(8, b"\xff"))))
    p("data-elsewhere", graph(initializer(location="../../etc/passwd")))
    p("data-absolute", graph(initializer(location="/dev/zero")))
    p("data-place-negative", graph(initializer(offset="-1")))
    p("data-place-not-a-number", graph(initializer(length="many")))
    p("data-place-huge", graph(initializer(offset=str(2**64 - 1))))
    p("data-beyond-the-file", graph(initializer(offset="100000000")))
    p("shape-negative", graph(initializer(dims=(-1, 2))))
    p("shape-overflows", graph(initializer(dims=(2**62, 2**62))))
    p("shape-does-not-fit-bytes", graph(initializer(dims=(3, 3))))
    p("type-unknown", graph(initializer(kind=99)))
    p("initializer-twice", graph(initializer(), initializer()))
    p("no-model", graph(initializer()))
    whole = sound("onnx", "model.onnx")
    p("truncated", whole[: len(whole) // 2])


def imatrix():
    p = lambda name, content: put("imatrix", name, content)
    kind = ("general.type", 8, text("imatrix"))
    f = lambda *values: struct.pack(f"<{len(values)}f", *values)
    name = "blk.0.attn_q.weight"

    def file(sums, counts, dims=None, values=(kind,), names=(".in_sum2", ".counts")):
        data = sums + b"\0" * (-len(sums) % 32)
        return gguf_file(list(values), [(name + names[0], dims or (len(sums) // 4,), 0, 0), (name + names[1], (len(counts) // 4,), 0, len(data))],
                         data + counts)

    p("gguf-empty", gguf_file([kind], []))
    p("gguf-other-type", file(f(1, 2), f(1), values=[("general.type", 8, text("model"))]))
    p("gguf-without-type", file(f(1, 2), f(1), values=[]))
    p("gguf-no-counts", file(f(1, 2), f(1), names=(".in_sum2", ".other")))
    p("gguf-counts-zero", file(f(1, 2), f(0)))
    p("gguf-counts-negative", file(f(1, 2), f(-3)))
    p("gguf-counts-nan", file(f(1, 2), f(float("nan"))))
    p("gguf-sum-nan", file(f(1, float("nan")), f(1)))
    p("gguf-sum-negative", file(f(1, -1), f(1)))
    p("gguf-sum-infinite", file(f(float("inf"), 1), f(1)))
    p("gguf-chunks-text", file(f(1, 2), f(1), values=[kind, ("imatrix.chunk_count", 8, text("9"))]))
    p("gguf-datasets-number", file(f(1, 2), f(1), values=[kind, ("imatrix.datasets", 4, u32(1))]))
    p("gguf-half-precision", gguf_file([kind], [(name + ".in_sum2", (4,), 1, 0)], b"\0" * 8))
    p("gguf-beyond-the-file", gguf_file([kind], [(name + ".in_sum2", (2**40,), 0, 0)]))
    old = lambda count=1, label=name, calls=1, values=f(1, 2), length=None, tail=b"": (
        u32(count) + u32(len(label)) + label.encode() + struct.pack("<i", calls) + u32(len(values) // 4 if length is None else length) + values + tail)
    p("old-empty", b"")
    p("old-entries-negative", struct.pack("<i", -1))
    p("old-entries-more-than-there-are", old(count=2**31 - 1))
    p("old-name-longer-than-the-file", u32(1) + u32(2**31 - 1) + b"abc")
    p("old-name-not-utf8", u32(1) + u32(2) + b"\xff\xfe" + u32(1) + u32(0))
    p("old-values-more-than-there-are", old(length=2**31 - 1))
    p("old-values-negative", u32(1) + u32(1) + b"a" + u32(1) + struct.pack("<i", -5))
    p("old-calls-zero", old(calls=0))
    p("old-calls-negative", old(calls=-1))
    p("old-value-nan", old(values=f(float("nan"))))
    p("old-entry-twice", u32(2) + old()[4:] * 2)
    p("old-tail", old(tail=b"\1\2\3"))


def tokenizer():
    base = json.loads(sound("dense", "tokenizer.json"))
    dump = lambda document: json.dumps(document, ensure_ascii=False)
    p = lambda name, *changes: put("tokenizer", name, dump(apply(base, changes)))

    def apply(document, changes):
        for path, value in changes:
            document = changed(document, path, value)
        return document

    put("tokenizer", "empty", "")
    put("tokenizer", "list", "[]")
    put("tokenizer", "nested", '{"model":' * 3000)
    put("tokenizer", "not-utf8", b'{"version":"\xff"}')
    put("tokenizer", "truncated", dump(base)[:700])
    p("model-missing", (["model"], ...))
    p("model-null", (["model"], None))
    p("model-unknown", (["model", "type"], "Pickle"))
    p("vocabulary-list", (["model", "vocab"], []))
    p("vocabulary-empty", (["model", "vocab"], {}))
    p("ids-negative", (["model", "vocab", "a"], -1))
    p("ids-beyond-32-bit", (["model", "vocab", "a"], 2**32))
    p("ids-fraction", (["model", "vocab", "a"], 1.5))
    p("ids-twice", (["model", "vocab", "T"], 50))
    p("ids-beyond-the-embedding", *[(["model", "vocab", c], 104 + i) for i, c in enumerate("Thequickbrown")])
    p("ids-at-the-end-of-32-bit", (["model", "vocab", "T"], 2**32 - 1))
    p("merges-number", (["model", "merges"], 3))
    p("merges-of-three", (["model", "merges"], ["a b c"]))
    p("merges-of-none", (["model", "merges"], [""]))
    p("merges-unknown", (["model", "merges"], ["\u1234 b"]))
    p("merges-without-result", (["model", "merges"], ["x y"]))
    p("unknown-token-unknown", (["model", "unk_token"], "[NONE]"))
    p("dropout-nan", (["model", "dropout"], "NaN"))
    p("dropout-two", (["model", "dropout"], 2.0))
    p("added-list-of-numbers", (["added_tokens"], [1]))
    p("added-id-beyond-the-embedding", (["added_tokens", 0, "id"], 4_000_000_000))
    p("added-empty", (["added_tokens", 0, "content"], ""))
    p("normalizer-unknown", (["normalizer"], {"type": "Exec"}))
    p("normalizer-charsmap", (["normalizer"], {"type": "Precompiled", "precompiled_charsmap": "AAAA"}))
    p("normalizer-charsmap-lies", (["normalizer"], {"type": "Precompiled", "precompiled_charsmap": "/////w=="}))
    p("normalizer-charsmap-lies-in-a-list", (["normalizer"], ["/////w=="]))
    lies = [(["normalizer"], {"type": "Precompiled", "precompiled_charsmap": "/////w=="})]
    put("tokenizer", "normalizer-charsmap-lies-and-the-file-ends", dump(apply(base, lies))[:700])
    put("tokenizer", "normalizer-charsmap-lies-before-another", dump(apply(base, lies))[:-1] + ', "normalizer": null}')
    p("normalizer-pattern-broken", (["normalizer"], {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}))
    p("splits-pattern-broken", (["pre_tokenizer"], {"type": "Split", "pattern": {"Regex": "(?<"}, "behavior": "Isolated", "invert": False}))
    p("splits-pattern-huge", (["pre_tokenizer"], {"type": "Split", "pattern": {"Regex": "((a{1000}){1000}){1000}"}, "behavior": "Isolated", "invert": False}))
    p("splits-pattern-without-end", (["pre_tokenizer"], {"type": "Split", "pattern": {"Regex": "(?=((\\w+\\s?)+)+!)x"}, "behavior": "Isolated", "invert": False}))
    p("splits-unknown", (["pre_tokenizer"], {"type": "Lua"}))
    p("template-unknown-token", (["post_processor"], {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}], "pair": [], "special_tokens": {}}))
    p("decoder-unknown", (["decoder"], {"type": "Rot13"}))
    p("truncation-huge", (["truncation"], {"max_length": 2**63, "strategy": "LongestFirst", "stride": 2**62, "direction": "Right"}))
    p("truncation-stride-larger", (["truncation"], {"max_length": 1, "strategy": "LongestFirst", "stride": 5, "direction": "Right"}))
    p("padding-huge", (["padding"], {"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": 0, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}))
    p("unigram-without-unknown", (["model"], {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 9, "byte_fallback": False}))
    p("unigram-empty", (["model"], {"type": "Unigram", "vocab": [], "unk_id": 0}))
    p("unigram-nan", (["model"], {"type": "Unigram", "vocab": [["<unk>", "NaN"]], "unk_id": 0}))
    p("wordpiece-without-unknown", (["model"], {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 5, "vocab": {"a": 0}}))

    settings = json.loads(sound("dense", "tokenizer_config.json"))
    c = lambda name, content: put("tokenizer-config", name, content if isinstance(content, (str, bytes)) else json.dumps(content))
    c("empty", "")
    c("list", "[]")
    c("nested", '{"a":' * 5000)
    c("not-utf8", b'{"bos_token":"\xff"}')
    c("begin-number", {**settings, "bos_token": 7})
    c("begin-unknown", {**settings, "bos_token": "<nothing>"})
    c("template-number", {**settings, "chat_template": 3})
    c("templates-without-default", {**settings, "chat_template": [{"name": "x", "template": "{{ 1/0 }}"}]})
    c("template-not-text", {**settings, "chat_template": [{"name": "default", "template": {"a": 1}}]})
    c("remote-code", {**settings, "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "chat_template": "{{ x.__class__.__mro__ }}"})

    t = lambda name, content: put("template", name, content)
    t("unclosed", "{% for m in messages %}")
    t("not-utf8", b"{{ '\xff' }}")
    t("refuses", "{{ raise_exception('this model takes no system message') }}")
    t("loops-in-loops", "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = b %}{% endfor %}{% endfor %}")
    t("range-huge", "{% for a in range(10000000000) %}x{% endfor %}")
    t("output-without-end", "{% for a in range(99999) %}{% for b in range(99999) %}" + "x" * 100 + "{% endfor %}{% endfor %}")
    t("doubles", "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(200) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}")
    t("doubles-by-plus", "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(200) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}")
    t("doubles-by-replace", "{% set ns = namespace(s='x') %}{% for i in range(200) %}{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor %}{{ ns.s }}")
    t("doubles-by-capture", "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(200) %}{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}")
    t("doubles-a-list", "{% set ns = namespace(s=[1]) %}{% for i in range(200) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s | length }}")
    t("doubles-by-join", "{% set ns = namespace(s='x') %}{% for i in range(200) %}{% set ns.s = ns.s.join(['a', 'b', 'c']) %}{% endfor %}")
    nest = "{%% set ns = namespace(x=[]) %%}{%% for j in range(%d) %%}{%% for i in range(1000) %%}{%% set ns.x = [ns.x] %%}{%% endfor %%}{%% endfor %%}"
    t("nests-lists-while-there-is-fuel", nest % 600)
    t("nests-lists", nest % 300 + "hello")
    t("nests-lists-and-prints-them", nest % 300 + "{{ ns.x | string | length }}{{ ns.x | tojson | length }}")
    t("repeats", "{{ 'x' * 10000000000 }}")
    t("repeats-within-the-limit", "{% for i in range(1000) %}{% set a = 'x' * 99999999 %}{% endfor %}")
    t("pads", "{{ 'x' | center(10000000000) }}{{ '%09999999999d' | format(1) }}")
    t("pads-by-method", "{{ 'x'.ljust(10000000000) }}{{ 'x'.zfill(10000000000) }}")
    t("indents", "{{ 'a\\nb\\nc' | indent(10000000000) }}")
    t("indents-json", "{{ messages | tojson(indent=10000000000) }}")
    t("recursion", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")
    t("recursive-loop", "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}")
    t("nested-parentheses", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")
    t("nested-lists", "{{ " + "[" * 5000 + " }}")
    t("nested-ifs", "{% if 1 %}" * 3000 + "{% endif %}" * 3000)
    t("unary-minus", "{{ " + "-" * 20000 + "1 }}")
    t("includes-a-file", "{% include '/etc/passwd' %}")
    t("extends-a-file", "{% extends '/etc/passwd' %}")
    t("imports-a-file", "{% import '../../../etc/passwd' as x %}{{ x }}")
    t("reaches-for-python", "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    t("reaches-for-globals", "{{ cycler.__init__.__globals__.os.popen('true').read() }}")
    t("divides-by-zero", "{{ 1 // 0 }}{{ 1 % 0 }}")
    t("power", "{{ 10 ** 100000 }}")
    t("integer-overflow", "{{ 170141183460469231731687303715884105727 * 2 }}")
    t("slice-huge", "{{ 'abc'[-9223372036854775808:9223372036854775807:-1] }}")
    t("slice-step-zero", "{{ messages[::0] }}")
    t("missing-key", "{{ messages[17].content.strip() }}")
    t("date-huge", "{{ strftime_now('%Y' * 90000000) }}")


def recipe():
    p = lambda name, content: put("recipe", name, content)
    p("key-unknown", "bist = 4\n")
    p("not-utf8", b"base = '\xff'\n")
    p("not-toml", "{{{{")
    p("nested", "a = " + "[" * 5000)
    p("nested-tables", ".".join(["a"] * 3000) + " = 1\n")
    p("base-unknown", "base = 'best'\n")
    p("base-a-path", "base = '../../etc/passwd'\n")
    p("bits-nine", "bits = 9\n")
    p("bits-negative", "bits = -4\n")
    p("bits-fraction", "bits = 3.5\n")
    p("group-zero", "group_size = 0\n")
    p("group-huge", "group_size = 9223372036854775807\n")
    p("group-word", "group_size = 'row'\n")
    p("solver-unknown", "solver = 'magic'\n")
    p("damping-nan", "[settings]\ndamping = nan\n")
    p("damping-infinite", "[settings]\ndamping = inf\n")
    p("damping-negative", "[settings]\ndamping = -1.0\n")
    p("settings-unknown", "[settings]\ndampening = 0.1\n")
    p("rule-without-condition", "[[rule]]\nbits = 4\n")
    p("rule-pattern-broken", "[[rule]]\nnames = '('\nbits = 4\n")
    p("rule-pattern-huge", "[[rule]]\nnames = '((a{1000}){1000}){1000}'\nbits = 4\n")
    p("rule-layers-reversed", "[[rule]]\nlayers = '3-1'\nbits = 4\n")
    p("rule-layers-huge", "[[rule]]\nlayers = '0-99999999999999999999999'\nbits = 4\n")
    p("rule-layers-words", "[[rule]]\nlayers = 'all'\nbits = 4\n")
    p("rule-role-unknown", "[[rule]]\nroles = ['sideways']\nbits = 4\n")
    p("transform-unknown", "transforms = ['rotate']\n")
    p("transform-twice", "transforms = ['rotate-values', 'rotate-values']\n")
    p("own-text-huge", "own_text = 1000000\n")
    p("passes-huge", "scale_passes = 9223372036854775807\n")


def record():
    base = json.loads(sound("gptq", "quantc.json"))

    def p(name, *changes):
        document = base
        for path, value in changes:
            document = changed(document, path, value)
        put("record", name, json.dumps(document), "gptq")

    put("record", "empty", "", "gptq")
    put("record", "not-utf8", b'{"version":"\xff"}', "gptq")
    put("record", "nested", "[" * 5000, "gptq")
    linear = Q[:-1]
    p("key-unknown", (["run"], "rm -rf"))
    p("format-unknown", (["format"], "zip"))
    p("file-in-the-parent", (["files", "../../../../../../etc/passwd"], {"bytes": 1, "sha256": "0"}))
    p("file-absolute", (["files", "/etc/passwd"], {"bytes": 1, "sha256": "0"}))
    p("file-a-device", (["files", "/dev/zero"], {"bytes": 1, "sha256": "0"}))
    p("file-through-a-folder", (["files", "additional_chat_templates/../../x"], {"bytes": 1, "sha256": "0"}))
    p("file-missing", (["files", "more.safetensors"], {"bytes": 1, "sha256": "0"}))
    p("file-longer", (["files", "config.json", "bytes"], 2**63))
    p("file-of-negative-length", (["files", "config.json", "bytes"], -1))
    p("digest-of-a-file-wrong", (["files", "config.json", "sha256"], "0" * 64))
    p("digest-of-a-linear-wrong", (["linears", linear, "digest"], "0" * 64))
    p("scheme-of-another-width", (["linears", linear, "scheme", "bits"], 8))
    p("scheme-impossible", (["linears", linear, "scheme", "bits"], 77))
    p("linear-unknown", (["linears", "model.layers.9.mlp.up_proj"], base["linears"][linear]))
    p("tensor-unknown", (["tensors", "model.nothing"], "0" * 64))
    p("linears-missing", (["linears"], ...))


def lines():
    p = lambda name, content: put("text", name, content)
    p("empty", "")
    p("spaces", " \n\t\n")
    p("too-short", '{"text": "a"}\n')
    p("not-utf8", b'{"text": "\xff\xfe"}\n')
    p("not-utf8-in-line-two", b'{"text": "a"}\n{"text": "\xc3"}\n')
    p("utf16", '{"text": "hello"}\n'.encode("utf-16"))
    p("key-unknown", '{"txt": "a"}\n')
    p("not-an-object", "[1, 2]\n")
    p("second-line-broken", '{"text": "a"}\n{"text": \n')
    p("nested", '{"text": ' + "[" * 5000 + "\n")
    p("text-a-number", '{"text": 7}\n')
    p("ids-beyond-the-embedding", '{"input_ids": [1, 2, 3, 104]}\n')
    p("ids-beyond-64-bit", '{"input_ids": [1, 2, 3, 99999999999999999999]}\n')
    p("ids-negative", '{"input_ids": [1, 2, 3, -4]}\n')
    p("ids-text", '{"input_ids": ["a", "b", "c", "d"]}\n')
    p("messages-a-number", '{"messages": 3}\n')
    p("messages-of-numbers", '{"messages": [3]}\n')
    p("messages-without-content", '{"messages": [{"role": "user"}]}\n')
    p("surrogates", '{"text": "\\ud800\\ud800 lone"}\n')
    p("no-line-end", "{" + '"text": "' + "x" * 3000)


def model():
    """Whole models whose weights have what no sound one has; these are quantized."""
    def p(name, *changes):
        tensors = parse(sound("dense", "model.safetensors"))
        for tensor, change in changes:
            dtype, shape, content = tensors[tensor]
            values = [content[i : i + 2] for i in range(0, len(content), 2)]
            change(values, shape)
            tensors[tensor] = (dtype, shape, b"".join(values))
        put("model", name, difference(tensors, parse(sound("dense", "model.safetensors"))))

    def every(piece):
        def change(values, shape):
            values[:] = [piece] * len(values)
        return change

    def one(piece, at=5):
        def change(values, shape):
            values[at] = piece
        return change

    def row(piece, index=1):
        def change(values, shape):
            values[index * shape[1] : (index + 1) * shape[1]] = [piece] * shape[1]
        return change

    def column(piece, index=1):
        def change(values, shape):
            values[index :: shape[1]] = [piece] * shape[0]
        return change

    nan, infinite, least, largest, zero = b"\xc0\x7f", b"\x80\xff", b"\1\0", b"\x7f\x7f", b"\0\0"
    q, down, norm, embedding = Q + "weight", "model.layers.0.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight", "model.embed_tokens.weight"
    p("weight-nan", (q, one(nan)))
    p("weight-infinite", (down, one(infinite)))
    p("weight-subnormal", (q, one(least)))
    p("weights-all-subnormal", (q, every(least)))
    p("weight-largest", (q, one(largest)))
    p("weights-all-largest", (q, every(largest)))
    p("weights-all-zero", (q, every(zero)))
    p("weights-all-equal", (q, every(b"\x80\x3f")))
    p("row-of-zeros", (q, row(zero)))
    p("row-of-largest", (down, row(largest)))
    p("column-of-zeros", (q, column(zero)))
    p("norm-nan", (norm, one(nan)))
    p("norm-of-zeros", (norm, every(zero)))
    p("norm-with-a-dead-channel", (norm, one(zero)))
    p("norm-largest", (norm, every(largest)))
    p("norm-subnormal", (norm, every(least)))
    p("embedding-nan", (embedding, one(nan, at=1000)))
    p("embedding-of-zeros", (embedding, every(zero)))
    p("embedding-with-a-dead-channel", (embedding, column(zero)))
    p("embedding-largest", (embedding, every(largest)))
    p("every-linear-zero", *[(f"model.layers.0.{name}.weight", every(zero)) for name in
                            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]])


def journal():
    def segment(head, parts=(), count=None, lengths=None, head_length=None, magic=b"quantcj1"):
        text = head if isinstance(head, bytes) else json.dumps(head).encode()
        lengths = [len(part) for part in parts] if lengths is None else lengths
        ending = b"".join(map(u64, lengths)) + u64(len(lengths) if count is None else count) + u64(len(text) if head_length is None else head_length)
        # The checksum is added where the file is laid out: otherwise nothing behind it would ever be read.
        return magic + b"".join(parts) + text + ending

    p = lambda name, *args, **more: put("journal", name, segment(*args, **more))
    scheme = {"bits": 4, "granularity": {"per_group": 16}, "symmetry": "symmetric", "scale_dtype": "f32"}
    array = lambda part, rows, columns: {"part": part, "rows": rows, "columns": columns}
    codes, scales = b"\x21" * 16, struct.pack("<2f", 0.5, 0.25)

    def solution(**more):
        return {"scheme": scheme, "codes": array(0, 2, 16), "scales": array(1, 2, 1), "zero_points": None, "minimums": None,
                "scale_parts": None, "minimum_parts": None, **more}

    head = lambda arrays=(), **more: {"solutions": [solution(**more)], "arrays": list(arrays)}
    two = (codes, scales)
    put("journal", "empty", b"")
    p("sound", head([array(1, 1, 2)]), two)
    p("other-magic", head(), two, magic=b"quantcj9")
    p("head-not-json", b"{", two)
    p("head-nested", b"[" * 5000, two)
    p("head-longer-than-the-file", head(), two, head_length=2**64 - 1)
    p("head-shorter", head(), two, head_length=3)
    p("parts-without-end", head(), two, count=2**64 - 1)
    p("parts-too-many", head(), two, count=3)
    p("parts-overflow", head(), two, lengths=[2**63, 2**63])
    p("parts-beyond-the-file", head(), two, lengths=[2**40, 8])
    p("part-that-is-not-there", head(codes=array(9, 2, 16)), two)
    p("part-negative", head(codes=array(-1, 2, 16)), two)
    p("codes-of-endless-columns", head(codes=array(0, 2, 2**64 - 1)), two)
    p("codes-of-endless-rows", head(codes=array(0, 2**64 - 1, 16)), two)
    p("codes-too-short", head(codes=array(0, 3, 16)), two)
    p("codes-without-rows", head(codes=array(0, 0, 2**63), scales=array(1, 0, 0)), (b"", b""))
    p("scales-of-another-shape", head(scales=array(1, 1, 2)), two)
    p("scales-of-half-numbers", head(scales=array(1, 2, 1)), (codes, b"\0" * 7))
    p("scales-overflow", head(scales=array(1, 2**32, 2**32)), two)
    p("scheme-of-nine-bits", head(scheme={**scheme, "bits": 9}), two)
    p("scheme-of-other-groups", head(scheme={**scheme, "granularity": {"per_group": 5}}), two)
    p("scheme-without-groups", head(scheme={**scheme, "granularity": {"per_group": 0}}), two)
    p("zero-points-above-the-grid", head(scheme={**scheme, "symmetry": "asymmetric"}, zero_points=array(2, 2, 1)), (*two, b"\xff\xff"))
    p("zero-points-of-another-shape", head(scheme={**scheme, "symmetry": "asymmetric"}, zero_points=array(2, 1, 1)), (*two, b"\1\1"))
    p("parts-of-scales-of-another-shape", head(scale_parts=[array(1, 1, 2), array(1, 2, 1)]), two)
    p("array-overflow", head([array(1, 2**63, 2)]), two)
    p("array-of-nothing", head([array(1, 0, 2**63)]), two)


def main():
    shutil.rmtree(HERE / "files", ignore_errors=True)
    for make in [safetensors, index, config, quantization, packed, gguf, onnx, imatrix, tokenizer, recipe, record, lines, model, journal]:
        make()
    known = {}
    path = HERE / "index.tsv"
    if path.exists():
        for line in path.read_text().splitlines()[1:]:
            file, _, _, message = line.split("\t")
            known[file] = message
    lines_ = ["file\treader\tamong\tmessage"] + ["\t".join([*row, known.get(row[0], "?")]) for row in ROWS]
    path.write_text("\n".join(lines_) + "\n")
    print(len(ROWS), "files")


main()
