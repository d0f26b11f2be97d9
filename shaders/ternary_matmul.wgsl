// Codes × ternary matrices for many rows (ops/ternary_matmul.rs): each thread keeps 4 outputs of 4 rows, so that a word
// of weights is unpacked once for 4 rows. Grid: x = tiles of 128 outputs, y = groups of 4 rows. Workgroup: 32 lanes.
#import ternary

const ROWS: u32 = 4u;

@compute @workgroup_size(TILE_LANES)
fn main(@builtin(local_invocation_id) local: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>) {
    let tile = find_tile(0u, group.x);
    let part = part_at(tile.part);
    let row0 = group.y * ROWS;
    let rows = led(params.lead, params.rows);
    let set0 = select(tile.part, 0u, params.sets == 1u);
    let groups = 8u / part.bits;
    let words = row_words(part.bits);
    let mask = code_mask(part.bits);
    // Rows behind the last one read the last one again: a clamp is cheaper than a branch in the loop.
    var act = array<u32, ROWS>();
    for (var r = 0u; r < ROWS; r++) {
        act[r] = (min(row0 + r, rows - 1u) * params.sets + set0) * params.set_words;
    }

    var sum = array<vec4<i32>, ROWS>();
    for (var j = 0u; j < words; j++) {
        let w = weights[part.first + (tile.tile * words + j) * TILE_LANES + local.x];
        for (var g = 0u; g < groups; g++) {
            let at = j * groups + g;
            for (var r = 0u; r < ROWS; r++) {
                sum[r] += dot_rows(w, g * part.bits, mask, codes[act[r] + at]);
            }
        }
    }

    let in_part = (tile.tile * TILE_LANES + local.x) * 4u;
    for (var r = 0u; r < ROWS; r++) {
        let row = row0 + r;
        if row >= rows { return; }
        let out = row * params.out_width + tile.out + in_part;
        store4(sum[r], part, row * params.sets + set0, in_part, out);
    }
}
