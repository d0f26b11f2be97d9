// Codes or floats × low-bit matrices with scales by group, for few rows (ops/group_matmul.rs). Grid: x = tiles of 128 outputs,
// y = blocks of ROWS rows, which share the words that are read.
#import group_matmul
#import group_matvec

#ifdef ROWS4
const ROWS: u32 = 4u;
#else
const ROWS: u32 = 1u;
#endif

override SPLIT_K: u32 = 4u;

var<workgroup> shares: array<vec4<f32>, SPLIT_K * TILE_LANES>;

// Row r of a block; rows behind the last one are it again.
fn row_at(block: u32, r: u32) -> u32 {
    return min(block * ROWS + r, counted(params.counted_by, params.rows) - 1u);
}

#ifdef FLOATS
// Adds a unit; `at` is the lane's place among the words of the tile.
fn add_unit(bits: u32, n: u32, block: u32, unit: Unit, at: u32, words: u32) {
    let per_word = 8u / bits; // vec4s of x for a word
    for (var i = 8u * unit.first; i < min(8u * unit.end, params.vectors); i++) {
        let shift = i % per_word * bits;
        for (var r = 0u; r < ROWS; r++) {
            let v = x[row_at(block, r) * params.vectors + i];
            for (var q = 0u; q < VEC4S; q++) {
                let w = weights[at + i / per_word * TILE_LANES + q];
                sums[r * VEC4S + q] += four_products(w, v, shift, bits);
            }
        }
    }
}
#else
fn by_block() -> bool {
    return params.act_group == 32u;
}

fn codes_from(block: u32, r: u32) -> u32 {
    return row_at(block, r) * params.vectors;
}

fn scales_from(block: u32, r: u32) -> u32 {
    return row_at(block, r) * params.act_groups;
}
#endif

@compute @workgroup_size(LANES * SPLIT_K)
fn main(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let lane = id % LANES;
    let share = id / LANES;
    let block = group.y;
    let tile = find_tile(0u, group.x);
    let part = part_at(tile.part);
    add_columns(part, block, share, lane, tile);
    let in_part = (tile.tile * TILE_LANES + lane * VEC4S) * 4u;
    for (var r = 0u; r < ROWS; r++) {
        if SPLIT_K > 1u {
            workgroupBarrier();
            for (var q = 0u; q < VEC4S; q++) { shares[(share * VEC4S + q) * LANES + lane] = totals[r * VEC4S + q]; }
            workgroupBarrier();
        }
        if share == 0u && block * ROWS + r < counted(params.counted_by, params.rows) {
            for (var q = 0u; q < VEC4S; q++) {
                var total = totals[r * VEC4S + q];
                for (var s = 1u; s < SPLIT_K; s++) { total += shares[(s * VEC4S + q) * LANES + lane]; }
                let place = place_of(block * ROWS + r, tile.out + in_part + 4u * q);
                store4(place, factor_of(tile.part) * total, in_part + 4u * q, part.rows);
            }
        }
    }
}
