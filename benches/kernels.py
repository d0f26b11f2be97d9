"""Joins what models launch with what a compiler says of the kernels, and predicts times on four GPUs (kernels.md).

python benches/kernels.py DUMP FAMILY=STATISTICS ... > benches/kernels.md

DUMP is a folder of `cargo run --release --example dump_launches -- DUMP`. FAMILY is gfx1150, navi33 or navi21. STATISTICS is
a file with a line for each kernel of DUMP/index.tsv, fields separated by tabs, of which one is the kernel's name and others
are `NAME=VALUE` as Mesa's RADV gives them through VK_KHR_pipeline_executable_properties for that family: VGPRs, Spilled VGPRs,
Spilled SGPRs, LDS size, Subgroups per SIMD, Instructions, Latency, Inverse Throughput.
"""

import math
import sys

# Name, family that stands for it, GB/s, SIMDs (two for a compute unit, four for a multiprocessor), GHz, cycles for one of RADV's.
GPUS = [
    ("Radeon 890M", "gfx1150", 120, 32, 2.9, 1),
    ("RX 7600", "navi33", 288, 64, 2.25, 1),
    ("RTX 4060 laptop", "navi21", 256, 96, 1.92, 2),
    ("H100", "navi21", 3350, 528, 1.98, 2),
]
LAUNCH = 4.0  # microseconds
NAMES = {"b": "bytes", "i": "instructions", "l": "latency", "n": "launch"}


def loops(kernel, p, context, latency):
    """How often the main loop, the rest, and a loop that makes codes run for each time that RADV assumes.

    That is 8 times for a loop, 4 for one in it, 2 for one in that, and half as often behind a branch of a workgroup.
    """
    source, up = kernel.split("__")[0], lambda a, b: math.ceil(a / b)
    columns, bits = 16 * p.get("vectors", 0), 2 if "2bit" in kernel else 1
    if source == "ternary-bit_linear":
        own = up(p["width"] / 4, p["THREADS"])
        return p["TERMS"] * up(up(p["width"], 32), 2 * p["SPLIT_K"]) / 32, p["TERMS"] * own / 16
    if source == "matmul-matmul_matvec":
        loads = p["d_in"] / (8 if "WIDE" in kernel else 4)
        return p["rows"] * p["per_row"] / 8 * up(loads, p["LANES"]) / 4, 1
    if source == "groups-group_matmul_matvec":
        return up(columns / 128, p["SPLIT_K"]) / 8, 1
    if source == "groups-group_linear":
        # Codes are made by blocks of 32 columns; with a norm and for a scale of the row there are loops over vec4s before.
        # Waves without a block of their own go on: they cost no throughput, and wait for the others.
        blocks, vec4s = p["width"] / 32, up(p["width"] / 4, p["THREADS"])
        blocks = up(blocks, p["THREADS"]) if latency else up(blocks, 64) * 64 / p["THREADS"]
        rest = vec4s / 8 if "NORM" in kernel or "WHOLE_ROW" in kernel else 1
        return up(p["width"] / 128, p["SPLIT_K"]) / 8, rest, blocks / 8
    if source in ("ternary-ternary_matmul_tiles", "ternary-ternary_matmul_dots"):
        blocks, branch = up(p["set_words"], 8), 2 if "GROUPS" in kernel else 1
        return branch * (up(blocks, 8) / 8 * 2 / 4 if "dots" in source else up(blocks * bits, 4) / 8), 1
    if source in ("groups-group_matmul_tiles", "groups-group_matmul_dots"):
        return up(columns / 32, 16) / 8 if "dots" in source else up(columns / 32, 4) / 8 * bits / 4, 1
    if source == "matmul-matmul_tiles":
        # The loop over 16 columns in it is unrolled; where rows are 64 it is not, and counts as 4.
        return p["d_in"] / 16 / 8 * (4 if "TALL" in kernel else 1), 1
    if source == "attention-attention_decode":
        return 2 * up(min(context, p["kv_chunk"]), p["TILE"]) / 8, 1
    if source == "attention-attention_tiles":
        return 1 / 8 * context / 32 / 4 * 2, 1  # loops in that one: 16 and 32 times, not 2; loads once, not twice
    if source == "attention-rope_kv_write":
        return (p["heads"] + 2 * p["kv_heads"]) * p["d"] / 4 / 64 / 8, 1
    if source == "sample-sample":
        return up(p["vocab"], 16 * 256) / 8 * 2, 1
    if source == "moe-route":
        return p["experts"] / 8 / 32 * p["width"] / 32 / 2, 1
    threads = 256 if "WG256" in kernel else 64
    if source == "quantise-quantise_groups":
        own = up(p["width"] / 4, threads) / 8
        return (own, own) if "WHOLE_ROW" in kernel else (up(p["groups"], threads) / 8, own)
    if source in ("norm-rms_norm", "quantise-norm_quantise"):
        own = up(p["width"], threads) / 8
        return own, own
    return 1, 1


def statistics(path):
    found = {}
    for line in open(path):
        fields = line.rstrip("\n").split("\t")
        values = dict(f.split("=") for f in fields if "=" in f and not f.startswith("Driver"))
        if values:
            name = next(f for f, after in zip(fields, fields[1:]) if "=" in after)
            found[name] = {k: int(v) for k, v in values.items()}
    return found


def table(path):
    lines = [line.rstrip("\n").split("\t") for line in open(path)]
    for line in lines[1:]:
        row = dict(zip(lines[0], line))
        row.update({k: int(row[k]) for k in ("threads", "x", "y", "z", "bytes", "operations", "times")})
        row["params"] = {k: float(v) for k, v in (p.split("=") for p in row["params"].split())}
        yield row


def of_a_step(row, found, name, context):
    """A statistic of a kernel with its loops run as often as they do."""
    kernel = row["kernel"]
    whole = found[kernel][name]

    def of_loop(without):
        return whole - min(whole, found[f"{kernel}__{without}"][name])

    main, other, *codes = loops(kernel, row["params"], context, name == "Latency")
    parts = [(of_loop("rest"), main), *((of_loop("coded"), times) for times in codes)]
    return sum(cost * times for cost, times in parts) + (whole - sum(cost for cost, _ in parts)) * other


def times(row, gpu, found, context):
    """Microseconds of a launch by what it might wait for."""
    _, family, bandwidth, simds, clock, cycles = gpu
    waves = math.ceil(row["threads"] / 64) * row["x"] * row["y"] * row["z"]
    throughput = of_a_step(row, found[family], "Inverse Throughput", context)
    return {
        "b": row["bytes"] / bandwidth / 1e3,
        "i": cycles * max(1, waves / simds) * throughput / clock / 1e3,
        "l": of_a_step(row, found[family], "Latency", context) / clock / 1e3,
        "n": LAUNCH,
    }


def short(kernel):
    source, *rest = kernel.split("__")
    return " ".join([source.split("-", 1)[1], *(r.replace("_", " ").lower() for r in rest if r.isupper() and not r[-1:].isdigit())])


def cell(t):
    worst = max(t, key=t.get)
    return f"{max(t[k] for k in 'bil'):.1f} {worst}"


def step_table(rows, found, context):
    print("| kernel | variant | × | workgroups × threads | KB | MMAC | registers | spills | occupancy | instructions |", *(f"{g[0]} |" for g in GPUS))
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|" + "--:|" * len(GPUS))
    for row in rows:
        s = found["navi33"][row["kernel"]]
        spills = max(f[row["kernel"]]["Spilled VGPRs"] + f[row["kernel"]]["Spilled SGPRs"] for f in found.values())
        cells = [cell(times(row, gpu, found, context)) for gpu in GPUS]
        groups = row["x"] * row["y"] * row["z"]
        print("|", short(row["kernel"]), "|", row["variant"], "|", row["times"], "|", f"{groups} × {row['threads']}", "|",
              f"{row['bytes'] / 1e3:.0f}", "|", f"{row['operations'] / 2e6:.1f}", "|", s["VGPRs"], "|", spills, "|",
              s["Subgroups per SIMD"], "|", s["Instructions"], "|", " | ".join(cells), "|")
    print()


def summary(rows, found, tokens, context):
    for gpu in GPUS:
        all_times = [(row["times"], times(row, gpu, found, context)) for row in rows]
        launches = sum(n for n, _ in all_times)
        total = sum(n * (max(t[k] for k in "bil") + LAUNCH) for n, t in all_times)
        bytes_alone = sum(n * t["b"] for n, t in all_times)
        parts = {k: sum(n * max(t[j] for j in "bil") for n, t in all_times if max("bil", key=t.get) == k) for k in "bil"}
        yield [gpu[0], launches, bytes_alone, parts["b"], parts["i"], parts["l"], launches * LAUNCH, total, tokens / total * 1e6]


def main():
    dump, files = sys.argv[1], dict(a.split("=", 1) for a in sys.argv[2:])
    found = {family: statistics(path) for family, path in files.items()}
    rows = [row for row in table(f"{dump}/launches.tsv") if row["usual"] == "true"]
    print(HEAD)
    steps = list(dict.fromkeys((r["model"], r["step"]) for r in rows))
    print("| model, step | GPU | launches | bytes alone, ms | bound by bytes | by instructions | by latency | launches, ms | step, ms | tokens/s |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for model, step in steps:
        tokens, mine = int((step + "-1").split("-")[1]), [r for r in rows if (r["model"], r["step"]) == (model, step)]
        for gpu, launches, *us, rate in summary(mine, found, tokens, 512):
            print(f"| {model} {step} | {gpu} | {launches} |", " | ".join(f"{t / 1e3:.2f}" for t in us), f"| {rate:.0f} |")
    print()
    for model, step in steps:
        if step != "prefill-64":
            print(f"## {model}, {step}\n")
            step_table([r for r in rows if (r["model"], r["step"]) == (model, step)], found, 512)


HEAD = f"""# Kernels by a GPU's compiler

Made by `examples/dump_launches.rs` and `benches/kernels.py`; nothing here was measured on a GPU. For every launch of a decoded
token (one row, 512 tokens in the cache) and of 512 rows of a prompt in one step: what it reads, what AMD's compiler for Vulkan
(Mesa RADV 25.0) makes of the kernel, and what it should take on four GPUs.

A launch takes the longest of three, and {LAUNCH:.0f} µs (assumed: a barrier and a dispatch behind it):

- bytes (b): what its op reads (`Op::bytes_read`) over the bandwidth;
- instructions (i): waves of 64 threads · inverse throughput / (SIMDs · clock), with at least one wave on a SIMD;
- latency (l): the latency of one wave / clock.

Inverse throughput (cycles of a SIMD for 64 threads, at the kernel's occupancy) and latency are RADV's estimates, which take
loops to run 8 times, and loops in them 4 times. `kernels.py` (`loops`) puts the number of the step's shapes in their place, for
the main loop and the loop that makes codes exactly; branches count by RADV's guess. n: the launch itself is the longest.

| GPU | compiled for | GB/s | SIMDs | GHz |
|---|---|--:|--:|--:|
""" + "\n".join(f"| {n} | {f} | {b} | {s} | {c} |" for n, f, b, s, c, _ in GPUS) + """

Bandwidth, SIMDs and clock are the vendors' published figures: 2 SIMDs for each of 16 and 32 compute units at the highest and at
the game clock; 4 for each of 24 and 132 multiprocessors, at the middle of the range of boost clocks and at the boost clock. The
instructions of those two are RADV's for an RX 6800 (navi21), each counted twice: half of their lanes do integers.

## Predicted
"""

if __name__ == "__main__":
    main()
