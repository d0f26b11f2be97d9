// Codes × ternary matrices for few rows, and for experts chosen per row (ops/ternary_matmul.rs).
// Grid: x = tiles of 128 outputs of one row's matrices, y = rows · slots. A workgroup is 32 lanes of 4 outputs, times
// SPLIT shares of the columns that are added up at the end behind one barrier.
#bind var<storage, read> codes: array<u32>; // [rows, sets, set_words]
#import ternary

override SPLIT: u32 = 4u;

var<workgroup> shares: array<vec4<i32>, SPLIT * TILE_LANES>;

@compute @workgroup_size(TILE_LANES, SPLIT)
fn main(@builtin(local_invocation_id) local: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>) {
    let row = group.y / params.slots;
    let slot = group.y % params.slots;
    var first = 0u;
#ifdef EXPERTS
    var expert = params.n_experts;
    if slot < params.k { expert = top[row * params.k + slot]; }
    first = expert * params.parts;
#endif
    let tile = find_tile(first, group.x);
    let part = part_at(first + tile.part);
    let which = row * params.sets + select(slot * params.parts + tile.part, 0u, params.sets == 1u);
    let act = which * params.set_words;
    let groups = 8u / part.bits; // words of activations for a word of weights: 4 or 8
    let words = row_words(part.bits);
    let mask = code_mask(part.bits);

    var sum = vec4<i32>();
    for (var j = local.y; j < words; j += SPLIT) {
        let w = weights[part.first + (tile.tile * words + j) * TILE_LANES + local.x];
        for (var g = 0u; g < groups; g++) {
            sum += dot_rows(w, g * part.bits, mask, codes[act + j * groups + g]);
        }
    }
    shares[local.y * TILE_LANES + local.x] = sum;
    workgroupBarrier();
    if local.y != 0u { return; }
    for (var s = 1u; s < SPLIT; s++) { sum += shares[s * TILE_LANES + local.x]; }

    let in_part = (tile.tile * TILE_LANES + local.x) * 4u;
    store4(sum, part, which, in_part, group.y * params.out_width + tile.out + in_part);
}
