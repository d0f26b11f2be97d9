// Codes × ternary matrices for few rows, and for experts chosen per row (ops/ternary_matmul.rs).
// Grid: x = tiles of 128 outputs of one row's matrices, y = rows · slots. A workgroup is LANES lanes, each with VEC4S
// times 4 outputs, times SPLIT_K shares of the columns that are added up at the end behind one barrier.
#bind var<storage, read> codes: array<vec4<u32>>; // [rows, sets, set_words / 4]
#import ternary
#import ternary_matvec

override SPLIT_K: u32 = 4u;

var<workgroup> shares: array<vec4<i32>, SPLIT_K * TILE_LANES>;

// Sums of a tile of a matrix and set `which` of codes: in the first share, those of all.
fn all_sums(local: vec2<u32>, part: Part, tile: u32, which: u32) -> array<vec4<i32>, VEC4S> {
    var sum = tile_sums(part, tile, local.x, local.y, which * (params.set_words / 4u));
    if SPLIT_K > 1u {
        for (var q = 0u; q < VEC4S; q++) { shares[(local.y * VEC4S + q) * LANES + local.x] = sum[q]; }
        workgroupBarrier();
        if local.y == 0u {
            for (var s = 1u; s < SPLIT_K; s++) {
                for (var q = 0u; q < VEC4S; q++) { sum[q] += shares[(s * VEC4S + q) * LANES + local.x]; }
            }
        }
    }
    return sum;
}

@compute @workgroup_size(LANES * SPLIT_K)
fn main(
    @builtin(local_invocation_index) id: u32,
    @builtin(workgroup_id) group: vec3<u32>,
#ifdef TABLES
    @builtin(subgroup_invocation_id) in_subgroup: u32,
#endif
) {
#ifdef TABLES
    begin_tables(in_subgroup);
#endif
    let local = vec2<u32>(id % LANES, id / LANES);
    let row = group.y / params.slots;
    let slot = group.y % params.slots;
    var first = 0u;
#ifdef EXPERTS
    var expert = params.n_experts + slot - params.k;
    if slot < params.k { expert = expert_ids[row * params.k + slot]; }
    first = expert * params.parts;
#endif
    let tile = find_tile(first, group.x);
    let part = part_at(first + tile.part);
    let of_whole = slot * params.matrices + params.first_matrix + tile.part;
    let which = row * params.sets + select(of_whole, 0u, params.sets == 1u);
    let sum = all_sums(local, part, tile.tile, which);
#ifdef GATED
    let up_part = part_at(first + 1u);
    workgroupBarrier(); // the first share has read the others
    let ups = all_sums(local, up_part, tile.tile, which + 1u);
#endif
    if local.y != 0u { return; }
    for (var q = 0u; q < VEC4S; q++) {
        let in_part = ((tile.tile * LANES + local.x) * VEC4S + q) * 4u;
        var values = products4(sum[q], part, which);
#ifdef GATED
        values = gated(values, products4(ups[q], up_part, which + 1u));
#endif
        store4(values, part.rows, in_part, group.y * params.out_width + params.first_out + tile.out + in_part);
    }
}
