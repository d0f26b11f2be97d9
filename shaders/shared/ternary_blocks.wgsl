// Blocks of 8 rows of a ternary product (ops/ternary_matmul.rs). With GROUPS the rows are a block of one expert's places
// (ops/group_rows.rs).
#import ternary

const ROWS: u32 = 8u;

#ifdef GATED
var<private> gates: array<vec4<f32>, ROWS>; // of the rows that this lane finishes
#endif

// The first matrix of a block's expert, NO_ROW for a block that is not used.
fn first_matrix(block: u32) -> u32 {
#ifdef GROUPS
    let expert = groups[block * (ROWS + 1u)];
    return select(expert * params.parts, NO_ROW, expert == NO_ROW);
#else
    return 0u;
#endif
}

// Row r of the block: its set in `codes` without the matrix, and its row of y. Rows behind the last one are it again.
fn row_at(block: u32, r: u32) -> u32 {
#ifdef GROUPS
    let row = groups[block * (ROWS + 1u) + 1u + r];
    return select(row, groups[block * (ROWS + 1u) + 1u], row == NO_ROW);
#else
    return min(block * ROWS + r, counted(params.counted_by, params.rows) - 1u);
#endif
}

fn is_row(block: u32, r: u32) -> bool {
#ifdef GROUPS
    return groups[block * (ROWS + 1u) + 1u + r] != NO_ROW;
#else
    return block * ROWS + r < counted(params.counted_by, params.rows);
#endif
}

// The number of the codes, scale and sum that row `row` has for matrix `matrix` of its run.
fn set_of(row: u32, matrix: u32) -> u32 {
#ifdef GROUPS
    return row * params.matrices + params.first_matrix + matrix;
#else
    return row * params.sets + select(params.first_matrix + matrix, 0u, params.sets == 1u);
#endif
}

// Writes 4 outputs of row r of a block, `in_part` the first one's number in its matrix. With GATED, those of the gate are kept,
// as number `nth` of this lane's, for those of up, which come behind them.
fn finish(block: u32, r: u32, nth: u32, sum: vec4<i32>, tile: Tile, part: Part, in_part: u32) {
    if !is_row(block, r) { return; }
    let row = row_at(block, r);
    var values = products4(sum, part, set_of(row, tile.part));
#ifdef GATED
    if tile.part == 0u {
        gates[nth] = values;
        return;
    }
    values = gated(gates[nth], values);
#endif
    let out = row * params.out_width + params.first_out + tile.out + in_part;
    store4(values, part.rows, in_part, out);
}
