// A gated activation and a norm, where there are any, codes, and their product with low-bit matrices that have scales by group, of
// one row in one launch (ops/group_linear.rs): every workgroup makes the codes, in workgroup memory. Grid: x = tiles of 128 outputs.
#import step
#import group_codes
#import group_matvec
#import workgroup_totals

struct Params {
    width: u32, // of the codes
    groups: u32, // of weights, in a row
    gate_bound: f32,
    product_bound: f32,
    relu2: u32,
    eps: f32,
    rms_floor: f32,
    in_bound: f32,
    out_bound: f32,
    max_code: f32,
    act_bound: f32,
    act_floor: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<vec4<f32>>; // [width / 4], with GATED [2, width / 4]: gate, up
#ifdef NORM
#bind var<storage, read> w: array<vec4<f32>>; // [width / 4]
#endif
#bind var<storage, read> weights: array<vec4<u32>>; // a stack: header, table, words and scales
#ifdef RESIDUAL
#bind var<storage, read> residual: array<f32>; // [out_width]
#endif
#bind var<storage, read_write> y: array<f32>; // [out_width]

const ROWS: u32 = 1u;
override SPLIT_K: u32 = 8u;
override THREADS: u32 = 256u; // LANES · SPLIT_K, at most 256
override COLUMNS: u32 = 384u; // the row's in 32s, at most 384
override CODES: u32 = 768u; // 2 · COLUMNS, and at least the SPLIT_K · TILE_LANES of the shares

var<workgroup> codes: array<vec4<u32>, CODES>; // at the end each share's totals
var<workgroup> act_scale_and_sum: array<vec2<f32>, COLUMNS>;

fn by_block() -> bool {
    return true;
}

fn codes_from(block: u32, r: u32) -> u32 {
    return 0u;
}

fn scales_from(block: u32, r: u32) -> u32 {
    return 0u;
}

fn make_codes(id: u32) {
    let vectors = params.width / 4u;
    var rms = 1.0;
#ifdef NORM
    var squares = 0.0;
    for (var i = id; i < vectors; i += THREADS) { squares += square(element(0u, i)); }
    rms = rms_of(sum_all(id, squares));
#endif
#ifdef WHOLE_ROW
    var most = magnitude(params.act_floor);
    for (var i = id; i < vectors; i += THREADS) { most = max(most, largest(value(0u, i, rms))); }
    let k = params.max_code / max_all(id, of_order(most));
#endif
    for (var g = id; g < COLUMNS; g += THREADS) {
        hold(0u, g, rms);
#ifdef WHOLE_ROW
        let made = codes_of_held(k);
#else
        let made = codes_of_held(best_k());
#endif
        codes[2u * g] = made.first;
        codes[2u * g + 1u] = made.second;
        act_scale_and_sum[g] = made.scale_and_sum;
    }
    workgroupBarrier();
}

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) group: vec3<u32>) {
    make_codes(id);
    let lane = id % LANES;
    let share = id / LANES;
    let tile = find_tile(0u, group.x);
    let part = part_at(tile.part);
    add_columns(part, 0u, share, lane, tile);
    if SPLIT_K > 1u {
        workgroupBarrier();
        for (var q = 0u; q < VEC4S; q++) { codes[(share * VEC4S + q) * LANES + lane] = bitcast<vec4<u32>>(totals[q]); }
        workgroupBarrier();
    }
    if share != 0u { return; }
    for (var q = 0u; q < VEC4S; q++) {
        var total = totals[q];
        for (var s = 1u; s < SPLIT_K; s++) { total += bitcast<vec4<f32>>(codes[(s * VEC4S + q) * LANES + lane]); }
        let in_part = (tile.tile * TILE_LANES + lane * VEC4S + q) * 4u;
        store4(tile.out + in_part, factor_of(tile.part) * total, in_part, part.rows);
    }
}
