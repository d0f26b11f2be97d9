// Blocks of queries of one kv head: query i of a kv head is row i / group, head i % group of its own. Queries of a block
// that read the same sequence are processed in one run.
#import values

// Where a run of queries of a block ends, and the maximum number of keys of any of them.
struct Run {
    end: u32,
    first: u32,
    keys: u32,
}

// Queries of a kv head in use.
fn n_queries() -> u32 {
    return counted(params.counted_by, params.rows) * params.per_row * params.group;
}

// The queries from `begin` on, before `until`, that read the same sequence.
fn run_from(begin: u32, until: u32) -> Run {
    let first = span(begin / params.group);
    var run = Run(begin, first.x, 0u);
    while run.end < until {
        let keys = span(run.end / params.group);
        if keys.x != run.first { break; }
        run.keys = max(run.keys, keys.y);
        run.end++;
    }
    return run;
}

// Keys of query i, 0 outside of the run of queries `begin..until`.
fn keys_in(i: u32, begin: u32, until: u32) -> u32 {
    if i < begin || i >= until { return 0u; }
    return span(i / params.group).y;
}

// Where query i of a kv head begins in q.
fn queried_at(i: u32, kv_head: u32) -> u32 {
    return query_at(i / params.group, kv_head * params.group + i % params.group);
}

// Where the output of query i of a kv head begins in y.
fn output_at(i: u32, kv_head: u32) -> u32 {
    return (i / params.group * params.heads + kv_head * params.group + i % params.group) * params.d;
}
