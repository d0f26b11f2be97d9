// The places (row, slot) of each expert, in blocks of 8 (ops/group_rows.rs): each of 32 threads an expert counts its
// share of the rows, finds where its places begin, and writes them. Grid: one workgroup.
#import step

const BLOCK: u32 = 8u;
const SHARES: u32 = 8u;
const EXPERTS: u32 = 32u;
const NONE: u32 = 0xffffffffu;

struct Params {
    lead: u32,
    rows: u32,
    k: u32,
    n_experts: u32,
    blocks: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> top: array<u32>; // [rows, k]
#bind var<storage, read_write> groups: array<u32>; // [blocks, 9]

var<workgroup> counts: array<u32, EXPERTS * SHARES>;

fn put(first_block: u32, place: u32, expert: u32, value: u32) {
    let block = (first_block + place / BLOCK) * (BLOCK + 1u);
    groups[block] = expert;
    groups[block + 1u + place % BLOCK] = value;
}

@compute @workgroup_size(SHARES, EXPERTS)
fn main(@builtin(local_invocation_id) local: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let rows = led(params.lead, params.rows);
    for (var i = id; i < params.blocks * (BLOCK + 1u); i += SHARES * EXPERTS) { groups[i] = NONE; }
    let expert = local.y;
    let per = (rows * params.k + SHARES - 1u) / SHARES;
    let begin = local.x * per;
    let end = min(begin + per, rows * params.k);
    var mine = 0u;
    for (var i = begin; i < end; i++) { mine += u32(top[i] == expert); }
    counts[id] = mine;
    storageBarrier();
    workgroupBarrier();

    var block = 0u;
    var place = 0u;
    for (var e = 0u; e < EXPERTS; e++) {
        var all = 0u;
        for (var s = 0u; s < SHARES; s++) {
            if e == expert && s == local.x { place = all; }
            all += counts[e * SHARES + s];
        }
        if e < expert { block += (all + BLOCK - 1u) / BLOCK; }
    }
    for (var i = begin; i < end; i++) {
        if top[i] == expert {
            put(block, place, expert, i / params.k * (params.k + 1u) + i % params.k);
            place++;
        }
    }
    // The shared expert's come last, behind all blocks of the others.
    if expert == EXPERTS - 1u {
        var all = 0u;
        for (var s = 0u; s < SHARES; s++) { all += counts[expert * SHARES + s]; }
        block += (all + BLOCK - 1u) / BLOCK;
        for (var r = local.x; r < rows; r += SHARES) {
            put(block, r, params.n_experts, r * (params.k + 1u) + params.k);
        }
    }
}
