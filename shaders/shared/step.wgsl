// What changes from step to step (plan::Step), and how many rows of a slot it uses.

struct Step {
    rows: u32,
    outputs: u32,
    context: u32,
    reserved: u32,
}

@group(0) @binding(0) var<uniform> this_step: Step;

// Leading rows in use of at most `most`, counted by a tensor::Lead.
fn led(lead: u32, most: u32) -> u32 {
    if lead == 1u { return min(most, this_step.rows); }
    if lead == 2u { return min(most, this_step.outputs); }
    return most;
}
