"""Models written by others' formats and brought back by `tailcut import`: how many tensors are not bit for bit the same?

    python benchmarks/import_round_trip.py run MODEL RESULT --out DIR --old OLD/bin/python --calibration text.jsonl
    python benchmarks/import_round_trip.py table RESULT                              # the table of docs/importing.md

MODEL is cut at 2:4 and at 50 % (interop_models.py; what is in DIR is taken). Each cut model is then written

    sparse-24-bitmask, sparse-bitmask   by compressed-tensors 0.14.0.1 in the environment of OLD, in float32 and bfloat16
    onnx                                as an ONNX file with its zeros written out (tailcut's own, `--target openvino`)
    gguf                                by the gguf package in float32, query and key rows in llama.cpp's order

and imported; the ONNX file with a directory that holds config and tokenizer only. Without --old its rows are left out.

    python -m venv OLD; OLD/bin/pip install compressed-tensors==0.14.0.1 torch==2.13.0 "transformers<5" accelerate
"""

import argparse
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import interop_models  # beside this script
import numpy as np

from tailcut.bench.machine import describe_machine
from tailcut.bench.report import markdown_row
from tailcut.checkpoint import Checkpoint
from tailcut.compress.adopting import bring, choose
from tailcut.compress.calibration import Calibration
from tailcut.compress.importers import ImportOptions
from tailcut.export.run import export
from tailcut.files import write_file
from tailcut.manifest import MANIFEST_NAME
from tailcut.progress import Reporter, console

WRITER = Path(__file__).with_name("import_round_trip_old.py")
# form, which cut model, dtype
ROWS = (
    ("sparse-24-bitmask", "24", "float32"),
    ("sparse-24-bitmask", "24", "bfloat16"),
    ("sparse-bitmask", "s50", "float32"),
    ("sparse-bitmask", "s50", "bfloat16"),
    ("onnx", "24", "float32"),
    ("onnx", "s50", "float32"),
    ("gguf", "24", "float32"),
)
OLD_FORMS = ("sparse-24-bitmask", "sparse-bitmask")
COMPANIONS = ("config.json", "tokenizer.json", "tokenizer_config.json")


def run(options: argparse.Namespace) -> None:
    """Every row anew."""
    rows = []
    with console() as report:
        calibration = Calibration(options.calibration, 16, 512)
        interop_models.make(options.model, options.out, calibration, report, ("24", "s50"))
        for form, model, dtype in ROWS:
            if form in OLD_FORMS and options.old is None:
                continue
            source = interop_models.model_of(model, options.model, options.out)
            rows.append(row_of(options, source, form, dtype, report) | {"form": form, "model": model, "dtype": dtype})
    machine = asdict(describe_machine())
    result = {"model": options.model.name, "machine": machine, "rows": rows}
    write_file(options.result, (json.dumps(result, indent=1) + "\n").encode())


def row_of(options: argparse.Namespace, source: Path, form: str, dtype: str, report: Reporter) -> dict[str, Any]:
    """Write, import, compare; both copies are removed."""
    work = options.out / "round-trip"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        foreign, versions = written(options, source, work / "foreign", form, dtype, report)
        size = sum(path.stat().st_size for path in foreign.rglob("*")) if foreign.is_dir() else foreign.stat().st_size
        read = foreign / "model.onnx" if form == "onnx" else foreign
        chosen = choose(read, None)
        manifest = bring(read, work / "back", chosen, settings(source, work, form), report=report)
        found = compared(source, work / "back", dtype)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return found | {"importer": chosen, "bytes": size, "versions": versions, "sparsity": manifest.sparsity}


def written(
    options: argparse.Namespace, source: Path, out: Path, form: str, dtype: str, report: Reporter
) -> tuple[Path, dict[str, str]]:
    """The foreign copy, and the versions of what wrote it."""
    if form == "onnx":
        export(source, out, target="openvino", check=False, report=report)
        (out / MANIFEST_NAME).unlink()  # others' files have none
        return out, {"tailcut": version("tailcut")}
    if form == "gguf":
        write_gguf(source, out.with_suffix(".gguf"))
        return out.with_suffix(".gguf"), {"gguf": version("gguf")}
    command = [str(options.old), str(WRITER), str(source.resolve()), str(out.resolve()), form, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return out, versions


def settings(source: Path, work: Path, form: str) -> ImportOptions:
    """What the importer is told: for an ONNX file a directory without weights."""
    if form != "onnx":
        return ImportOptions()
    (work / "config").mkdir()
    for name in COMPANIONS:
        shutil.copy(source / name, work / "config" / name)
    return ImportOptions(work / "config")


def compared(source: Path, back: Path, dtype: str) -> dict[str, Any]:
    """How many tensors there are, and the names of those whose bits, shape or type are not the source's in `dtype`."""
    ours, theirs = Checkpoint(source), Checkpoint(back)
    wanted, found = set(ours.names), set(theirs.names)
    differ, values = sorted(wanted ^ found), 0
    for name in sorted(wanted & found):
        stored = theirs.read(name)
        expected = ours.read(name).astype(stored.dtype)
        values += expected.size
        if stored.dtype.name != dtype or expected.shape != stored.shape or expected.tobytes() != stored.tobytes():
            differ.append(name)
        ours.release()
        theirs.release()
    return {"tensors": len(wanted), "values": values, "differ": differ}


def write_gguf(source: Path, path: Path) -> None:
    """A Llama in float32 as llama.cpp's converter lays it out."""
    import gguf

    checkpoint = Checkpoint(source)
    config = checkpoint.config
    tokenizer = json.loads((source / "tokenizer.json").read_bytes())
    tokens = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    heads, shared = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    writer: Any = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_embedding_length, config["hidden_size"]),
        (writer.add_feed_forward_length, config["intermediate_size"]),
        (writer.add_block_count, config["num_hidden_layers"]),
        (writer.add_head_count, heads),
        (writer.add_head_count_kv, shared),
        (writer.add_context_length, config["max_position_embeddings"]),
        (writer.add_layer_norm_rms_eps, config["rms_norm_eps"]),
        (writer.add_rope_freq_base, (config.get("rope_parameters") or config)["rope_theta"]),
        (writer.add_rope_dimension_count, config["hidden_size"] // heads),
        (writer.add_bos_token_id, config["bos_token_id"]),
        (writer.add_eos_token_id, config["eos_token_id"]),
        (writer.add_unk_token_id, config["eos_token_id"]),
        (writer.add_pad_token_id, config["eos_token_id"]),
        (writer.add_add_bos_token, False),
        (writer.add_chat_template, "{{ messages }}"),
    ):
        add(value)
    vocabulary = sorted(tokens, key=tokens.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([1] * len(vocabulary))
    writer.add_token_merges(
        [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    )
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, int(config["num_hidden_layers"]))
    for name in checkpoint.names:
        array = np.array(checkpoint.read(name), np.float32)
        turned = {"q_proj": heads, "k_proj": shared}.get(name.split(".")[-2])
        writer.add_tensor(
            names.get_name(name, (".weight", ".bias")), array if turned is None else neighbours(array, turned)
        )
        checkpoint.release()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def neighbours(rows: Any, heads: int) -> Any:  # noqa: ANN401 numpy arrays
    """Rows [heads * n, in]: the halves of a head that Hugging Face rotates, side by side as llama.cpp rotates them."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def render(result: Mapping[str, Any]) -> str:
    """The table of docs/importing.md."""
    head = ["written as", "by", "model", "type", "MB", "read by", "tensors", "differ"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    for row in result["rows"]:
        by = next(f"{name} {value}" for name, value in row["versions"].items())
        model = {"24": "2:4", "s50": "50 %"}[row["model"]]
        named = [row["form"], by, model, row["dtype"], f"{row['bytes'] / 1e6:.0f}", row["importer"]]
        lines.append(markdown_row([*named, str(row["tensors"]), str(len(row["differ"]))]))
    machine = result["machine"]
    note = f"{result['model']}, every tensor compared bit for bit with the directory that was written. Commit {machine['commit']}."
    return "\n".join([*lines, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    measure = actions.add_parser("run", help="write, import and compare")
    measure.add_argument("model", type=Path)
    measure.add_argument("result", type=Path)
    measure.add_argument("--out", type=Path, required=True, help="where models go")
    measure.add_argument("--old", type=Path, help="Python of an environment with compressed-tensors 0.14.0.1")
    measure.add_argument("--calibration", default="demo")
    table = actions.add_parser("table", help="render a result")
    table.add_argument("result", type=Path)
    options = parser.parse_args()
    if options.action == "run":
        run(options)
    print(render(json.loads(options.result.read_bytes())))


if __name__ == "__main__":
    main()
