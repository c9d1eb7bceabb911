"""Makes windows.json and chat.json beside it: what the Python packages do with the same input.

    python make_goldens.py     (tokenizers 0.23.3, transformers 5.23.0, jinja2 3.1.6)
"""
import hashlib, json, os
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(HERE, "..", "..", "..", "demo")


def windows(tok, path, win, n):
    txt = open(path, encoding="utf-8").read()
    ids = tok(txt[: win * n * 12], add_special_tokens=False)["input_ids"]
    step = win - 1 if tok.bos_token_id is not None else win
    bos = [] if tok.bos_token_id is None else [tok.bos_token_id]
    return [bos + ids[i:i + step] for i in range(0, len(ids) - step + 1, step)][:n]


def fingerprint(ws):
    h = hashlib.sha256()
    for w in ws:
        h.update(len(w).to_bytes(8, "little"))
        for t in w:
            h.update(t.to_bytes(4, "little"))
    return h.hexdigest()


tok = AutoTokenizer.from_pretrained(os.path.join(DEMO, "model"))
cases = []
for text in ["calibration.txt", "evaluation.txt"]:
    for win, n in [(256, 128), (256, 3), (64, 100000), (2, 5)]:
        ws = windows(tok, os.path.join(DEMO, text), win, n)
        cases.append({"text": text, "context": win, "samples": n, "windows": len(ws), "first": ws[0][:16],
                      "last": ws[-1][-16:], "fingerprint": fingerprint(ws)})
json.dump(cases, open(os.path.join(HERE, "windows.json"), "w"), indent=1)

TEMPLATES = {
    "marked turns with a default system message": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You help.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}""",
    "slices, tests, trims and exceptions": """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if tools is not none %}tools{% endif %}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message %}
            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' ~ message.content ~ ' [/INST]' }}
        {%- endif %}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message['content'].strip() + eos_token }}
    {%- endif %}
{%- endfor %}""",
    "namespaces, reversed lists and string methods": """{%- set ns = namespace(last=-1, seen='') %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.last < 0 and message.role == "user" and message.content is string and not(message.content.startswith('<tool>')) %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<' + message.role.upper() + ' ' ~ loop.index0 ~ '/' ~ loop.length ~ '>' + content.rstrip() }}
    {%- if not loop.last %}{{ '\\n' }}{% endif %}
{%- endfor %}
{{- '|last=' ~ ns.last }}""",
    "json, dates, macros and loop controls": """{%- macro turn(role, text) -%}
<{{ role|capitalize }}>{{ text|replace('e', 'E') }}
{%- endmacro -%}
{{ messages|tojson }}
{{ messages[0]|tojson(indent=2) }}
{% for message in messages %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
    {{ turn(message.role, message.content) }}
    {% generation %}{{ eos_token }}{% endgeneration %}
    {% for key, value in message.items() %}
{{ key }}={{ value|length }};
    {% endfor %}
    {% if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}
{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join(', ') }}
{{ messages|map(attribute='role')|unique|list|length }} {{ (messages|last).get('name', 'nobody') }} {{ 'x' is defined and y is not defined }}""",
    "whitespace around lines": """
{% if messages %}
  {%- for m in messages -%}
    [{{ m.role }}]
    {%+ if true %}  {{ m.content|trim }}{% endif %}

  {%- endfor %}

{% endif %}
{# a comment #}
end
""",
}
CONVERSATIONS = [
    [{"role": "system", "content": " Be brief & <kind>. "}, {"role": "user", "content": "Hello \"you\" — 'there'?"},
     {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi! "}, {"role": "user", "content": "What is 2 + 2?"},
     {"role": "assistant", "content": "Four.\n"}],
    [{"role": "user", "content": "Zeile eins\nLine two\u00e9"}, {"role": "assistant", "content": "", "name": "bot"}],
]
chats = []
for name, template in TEMPLATES.items():
    for messages in CONVERSATIONS:
        rendered, _ = render_jinja_template([messages], chat_template=template, bos_token="<s>", eos_token="</s>")
        chats.append({"name": name, "template": template, "messages": messages, "expected": rendered[0]})
json.dump(chats, open(os.path.join(HERE, "chat.json"), "w"), indent=1)

# Rotary frequencies: config.json keys, the length of the sequence, what transformers rotates with.
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

pairs = 16
short, long = [1.0 + 0.05 * i for i in range(pairs)], [1.5 + 0.9 * i for i in range(pairs)]
ROPES = [
    ({"rope_type": "default", "rope_theta": 10000.0}, 2048, [100]),
    ({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, 2048, [100]),
    ({"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}, 256, [100, 256, 300, 1000]),
    ({"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 512}, 4096, [100]),
    ({"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512}, 2048, [100]),
    ({"rope_type": "yarn", "rope_theta": 1e6, "factor": 8.0, "original_max_position_embeddings": 512, "beta_fast": 16.0,
      "beta_slow": 2.0, "truncate": False, "mscale": 0.7, "mscale_all_dim": 1.2}, 4096, [100]),
    ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 512,
      "attention_factor": 1.25}, 4096, [100]),
    ({"rope_type": "longrope", "rope_theta": 1e4, "short_factor": short, "long_factor": long, "factor": 8.0,
      "original_max_position_embeddings": 128}, 1024, [100, 128, 129, 500]),
    ({"rope_type": "longrope", "rope_theta": 1e4, "short_factor": short, "long_factor": long,
      "original_max_position_embeddings": 128}, 1024, [100]),
]
ropes = []
for parameters, context, lengths in ROPES:
    keys = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
            "vocab_size": 64, "max_position_embeddings": context, "rms_norm_eps": 1e-6}
    for length in lengths:
        rope = LlamaRotaryEmbedding(LlamaConfig(**keys, rope_parameters=dict(parameters)))
        cos, sin = rope(torch.zeros(1, length, 32), torch.arange(length)[None])
        ropes.append({"config": {"model_type": "llama", **keys, "rope_parameters": parameters}, "length": length,
                      "frequencies": rope.inv_freq.double().tolist(), "factor": float(rope.attention_scaling),
                      "last_cosines": cos[0, -1, :pairs].double().tolist(), "last_sines": sin[0, -1, :pairs].double().tolist()})
json.dump(ropes, open(os.path.join(HERE, "rope.json"), "w"), indent=1)
