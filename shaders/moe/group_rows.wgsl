// The places (row, slot) of each expert, in blocks of 8 (ops/group_rows.rs), 32 experts at a time: each of 8 threads an
// expert counts its share of the rows, finds where its places begin, and writes them. Grid: one workgroup.
#import step

const BLOCK: u32 = 8u;
const SHARES: u32 = 8u;
const EXPERTS: u32 = 32u; // at a time
const NONE: u32 = 0xffffffffu;

struct Params {
    counted_by: u32,
    rows: u32,
    k: u32,
    n_experts: u32,
    n_shared: u32, // experts of every row, numbered from n_experts on
    blocks: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> expert_ids: array<u32>; // [rows, k]
#bind var<storage, read_write> groups: array<u32>; // [blocks, 9]

var<workgroup> counts: array<u32, EXPERTS * SHARES>;

fn put(first_block: u32, place: u32, expert: u32, value: u32) {
    let block = (first_block + place / BLOCK) * (BLOCK + 1u);
    groups[block] = expert;
    groups[block + 1u + place % BLOCK] = value;
}

@compute @workgroup_size(SHARES, EXPERTS)
fn main(@builtin(local_invocation_id) local: vec3<u32>, @builtin(local_invocation_index) id: u32) {
    let rows = counted(params.counted_by, params.rows);
    for (var i = id; i < params.blocks * (BLOCK + 1u); i += SHARES * EXPERTS) { groups[i] = NONE; }
    let slots = params.k + params.n_shared;
    let per = (rows * params.k + SHARES - 1u) / SHARES;
    let begin = local.x * per;
    let end = min(begin + per, rows * params.k);
    var before = 0u; // blocks of the experts before these
    for (var first = 0u; first < params.n_experts; first += EXPERTS) {
        let expert = first + local.y;
        var mine = 0u;
        for (var i = begin; i < end; i++) { mine += u32(expert_ids[i] == expert); }
        workgroupBarrier();
        counts[id] = mine;
        storageBarrier();
        workgroupBarrier();

        var block = before;
        var place = 0u;
        for (var e = 0u; e < EXPERTS; e++) {
            var all = 0u;
            for (var s = 0u; s < SHARES; s++) {
                if e == local.y && s == local.x { place = all; }
                all += counts[e * SHARES + s];
            }
            let blocks = (all + BLOCK - 1u) / BLOCK;
            if e < local.y { block += blocks; }
            before += blocks;
        }
        for (var i = begin; i < end; i++) {
            if expert_ids[i] == expert {
                put(block, place, expert, i / params.k * slots + i % params.k);
                place++;
            }
        }
    }
    // The shared experts' come last, behind all blocks of the others.
    for (var s = 0u; s < params.n_shared; s++) {
        for (var r = id; r < rows; r += SHARES * EXPERTS) {
            put(before, r, params.n_experts + s, r * slots + params.k + s);
        }
        before += (rows + BLOCK - 1u) / BLOCK;
    }
}
