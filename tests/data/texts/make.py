"""Writes the Parquet files beside: documents of the demo's evaluation text as data sets have them, in each packing."""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

here = pathlib.Path(__file__).parent
text = (here / "../../../demo/evaluation.txt").read_text(encoding="utf-8")
paragraphs = [text[at : at + 300] for at in range(0, 12000, 300)]
number = list(range(len(paragraphs)))
pq.write_table(pa.table({"id": number, "text": paragraphs}), here / "zstd.parquet", compression="zstd", row_group_size=15)
talks = [
    [{"role": "user", "content": a}, {"role": "assistant", "content": b}]
    for a, b in zip(paragraphs[::2], paragraphs[1::2])
]
pq.write_table(pa.table({"messages": talks}), here / "snappy.parquet", compression="snappy")
ids = [[(7 * i + 3 * j) % 2000 for j in range(50)] for i in number]
pq.write_table(pa.table({"input_ids": ids, "attention_mask": [[1] * 50 for _ in number]}), here / "gzip.parquet", compression="gzip")
lines = [json.dumps({"text": part}, ensure_ascii=False) for part in paragraphs]
(here / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
(here / "messages.jsonl").write_text("\n".join(json.dumps({"messages": t}, ensure_ascii=False) for t in talks) + "\n", encoding="utf-8")
(here / "ids.jsonl").write_text("\n".join(json.dumps({"input_ids": i}) for i in ids) + "\n", encoding="utf-8")
pq.write_table(pa.table({"prompt": paragraphs[:3]}), here / "other.parquet", compression="none")
