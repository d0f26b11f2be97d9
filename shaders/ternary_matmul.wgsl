// Codes × ternary matrices for many rows (ops/ternary_matmul.rs): each thread keeps 4 outputs of 4 rows, so that a word
// of weights is unpacked once for 4 rows. Grid: x = tiles of 128 outputs, y = groups of 4 rows. Workgroup: 32 lanes.
#import step
#import ternary

const ROWS: u32 = 4u;

struct Params {
    lead: u32,
    rows: u32,
    sets: u32,
    set_words: u32,
    parts: u32,
    slots: u32,
    k: u32,
    n_experts: u32,
    out_width: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> codes: array<u32>; // [rows, sets, set_words]
#bind var<storage, read> act_meta: array<vec2<f32>>; // [rows, sets]: 1/k, sum of codes
#bind var<storage, read> weights: array<vec4<u32>>; // a stack: header, table, words
#ifdef RESIDUAL
#bind var<storage, read> residual: array<f32>; // [rows, out_width]
#endif
#bind var<storage, read_write> y: array<f32>; // [rows, out_width]

#import stack

@compute @workgroup_size(TILE_LANES)
fn main(@builtin(local_invocation_id) local: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>) {
    let tile = find_tile(0u, group.x);
    let part = part_at(tile.part);
    let row0 = group.y * ROWS;
    let rows = led(params.lead, params.rows);
    let set0 = select(tile.part, 0u, params.sets == 1u);
    let groups = 8u / part.bits;
    let words = (weights[0].y + 4u * groups - 1u) / (4u * groups);
    let mask = select(0x03030303u, 0x01010101u, part.bits == 1u);
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
        let m = act_meta[row * params.sets + set0];
        let out = row * params.out_width + tile.out + in_part;
        let exact = exact_sums(sum[r], i32(m.y), part.bits);
        for (var i = 0u; i < 4u; i++) {
            if in_part + i < part.rows {
                var v = f32(exact[i]) * (part.scale * m.x);
#ifdef RESIDUAL
                v += residual[out + i];
#endif
                y[out + i] = v;
            }
        }
    }
}
