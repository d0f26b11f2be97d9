// What changes from step to step (plan::Step), and how many rows of a slot it uses.

struct Step {
    rows: u32,
    outputs: u32,
    context: u32,
    reserved: u32,
}

@group(0) @binding(0) var<uniform> this_step: Step;

// Leading rows in use of at most `max_rows`, counted by a tensor::CountedBy.
// One return: FXC takes the value of a function with several for uninitialised, and refuses barriers in loops up to it.
fn counted(counted_by: u32, max_rows: u32) -> u32 {
    let rows = select(max_rows, min(max_rows, this_step.rows), counted_by == 1u);
    return select(rows, min(max_rows, this_step.outputs), counted_by == 2u);
}
