CREATE TABLE hindsight_blocks (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    block_index INTEGER NOT NULL,
    group_id VARCHAR NOT NULL,
    focal_rollout INTEGER,
    focal_turn INTEGER,
    homogeneous BOOLEAN NOT NULL,
    num_attempts INTEGER NOT NULL,
    num_dropped_attempts INTEGER NOT NULL,
    num_shortened_attempts INTEGER NOT NULL,
    num_cut_tokens INTEGER NOT NULL,
    text VARCHAR NOT NULL,
    token_ids INTEGER[] NOT NULL,
    PRIMARY KEY (run, iteration, block_index)
);
COMMENT ON TABLE hindsight_blocks IS 'One row a hindsight block: the text that the teacher sees and the student does not.';
COMMENT ON COLUMN hindsight_blocks.run IS 'Name of the run.';
COMMENT ON COLUMN hindsight_blocks.iteration IS 'Iteration of the run.';
COMMENT ON COLUMN hindsight_blocks.block_index IS 'Place of the block in the stage''s file, from 0.';
COMMENT ON COLUMN hindsight_blocks.group_id IS 'Its group.';
COMMENT ON COLUMN hindsight_blocks.focal_rollout IS 'rollout_index that the block serves; empty: every rollout of the group.';
COMMENT ON COLUMN hindsight_blocks.focal_turn IS 'Turn that the block serves; empty: every turn.';
COMMENT ON COLUMN hindsight_blocks.homogeneous IS 'True when all siblings have the same label.';
COMMENT ON COLUMN hindsight_blocks.num_attempts IS 'Attempts in the block.';
COMMENT ON COLUMN hindsight_blocks.num_dropped_attempts IS 'Attempts left out because not even their labels fitted.';
COMMENT ON COLUMN hindsight_blocks.num_shortened_attempts IS 'Attempts whose contents were cut because the block was too long.';
COMMENT ON COLUMN hindsight_blocks.num_cut_tokens IS 'Tokens that the whole block has more than this one.';
COMMENT ON COLUMN hindsight_blocks.text IS 'The block.';
COMMENT ON COLUMN hindsight_blocks.token_ids IS 'Its tokens.';

CREATE TABLE hindsight_attempts (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    block_index INTEGER NOT NULL,
    attempt_index INTEGER NOT NULL,
    group_id VARCHAR NOT NULL,
    rollout_index INTEGER NOT NULL,
    label VARCHAR,
    contents VARCHAR[] NOT NULL,
    PRIMARY KEY (run, iteration, block_index, attempt_index)
);
COMMENT ON TABLE hindsight_attempts IS 'One row an attempt of a hindsight block.';
COMMENT ON COLUMN hindsight_attempts.run IS 'Name of the run.';
COMMENT ON COLUMN hindsight_attempts.iteration IS 'Iteration of the run.';
COMMENT ON COLUMN hindsight_attempts.block_index IS 'The block, as in hindsight_blocks.';
COMMENT ON COLUMN hindsight_attempts.attempt_index IS 'Place in the block, from 0.';
COMMENT ON COLUMN hindsight_attempts.group_id IS 'The block''s group.';
COMMENT ON COLUMN hindsight_attempts.rollout_index IS 'Which sibling it is.';
COMMENT ON COLUMN hindsight_attempts.label IS 'CORRECT or INCORRECT; empty when the labels are switched off.';
COMMENT ON COLUMN hindsight_attempts.contents IS 'Its queries, or whatever else the masking keeps; as far as they fit.';

CREATE TABLE teacher_targets (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    rollout_id VARCHAR NOT NULL,
    group_id VARCHAR NOT NULL,
    tensor_path VARCHAR NOT NULL,
    row_start BIGINT NOT NULL,
    num_rows INTEGER NOT NULL,
    positions INTEGER[] NOT NULL,
    support_size INTEGER NOT NULL,
    context_shift INTEGER NOT NULL,
    num_tokens BIGINT NOT NULL,
    mean_jsd DOUBLE NOT NULL,
    PRIMARY KEY (run, iteration, rollout_id)
);
COMMENT ON TABLE teacher_targets IS 'One row a rollout: where the teacher''s distributions are.';
COMMENT ON COLUMN teacher_targets.run IS 'Name of the run.';
COMMENT ON COLUMN teacher_targets.iteration IS 'Iteration of the run.';
COMMENT ON COLUMN teacher_targets.rollout_id IS 'The rollout.';
COMMENT ON COLUMN teacher_targets.group_id IS 'Its group.';
COMMENT ON COLUMN teacher_targets.tensor_path IS 'The safetensors file, below the workspace.';
COMMENT ON COLUMN teacher_targets.row_start IS 'First row of that file''s tensors which is this rollout''s.';
COMMENT ON COLUMN teacher_targets.num_rows IS 'Distilled tokens of the rollout.';
COMMENT ON COLUMN teacher_targets.positions IS 'Their offsets into the rollout''s tokens after the prompt.';
COMMENT ON COLUMN teacher_targets.support_size IS 'Tokens kept per position (K).';
COMMENT ON COLUMN teacher_targets.context_shift IS 'Teacher position minus student position, in tokens (of the first block, where each turn has its own).';
COMMENT ON COLUMN teacher_targets.num_tokens IS 'Tokens that the teacher''s and the student''s passes saw, prompts and blocks included.';
COMMENT ON COLUMN teacher_targets.mean_jsd IS 'Mean Jensen-Shannon divergence over the rollout''s distilled tokens, nats.';

CREATE TABLE query_credit (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    rollout_id VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    group_id VARCHAR NOT NULL,
    turn INTEGER NOT NULL,
    token_id INTEGER NOT NULL,
    token VARCHAR NOT NULL,
    teacher_logprob DOUBLE NOT NULL,
    student_logprob DOUBLE NOT NULL,
    jsd DOUBLE NOT NULL,
    divergence DOUBLE NOT NULL,
    teacher_entropy DOUBLE NOT NULL,
    student_entropy DOUBLE NOT NULL,
    PRIMARY KEY (run, iteration, rollout_id, position)
);
COMMENT ON TABLE query_credit IS 'One row a distilled token (query tokens by default): what the teacher says of it.';
COMMENT ON COLUMN query_credit.run IS 'Name of the run.';
COMMENT ON COLUMN query_credit.iteration IS 'Iteration of the run.';
COMMENT ON COLUMN query_credit.rollout_id IS 'The rollout.';
COMMENT ON COLUMN query_credit.position IS 'Offset into the rollout''s tokens after the prompt.';
COMMENT ON COLUMN query_credit.group_id IS 'Its group.';
COMMENT ON COLUMN query_credit.turn IS 'Its turn in the rollout, from 0.';
COMMENT ON COLUMN query_credit.token_id IS 'The token that was sampled.';
COMMENT ON COLUMN query_credit.token IS 'Its text.';
COMMENT ON COLUMN query_credit.teacher_logprob IS 'Teacher''s log-probability of it, nats.';
COMMENT ON COLUMN query_credit.student_logprob IS 'Log-probability under the policy that sampled it, nats.';
COMMENT ON COLUMN query_credit.jsd IS 'Exact Jensen-Shannon divergence of teacher and student, nats.';
COMMENT ON COLUMN query_credit.divergence IS 'Divergence of teacher and student as the settings measure it (kind, support, tail), the term of L_SD at the weights that sampled: nats, without unit for mse.';
COMMENT ON COLUMN query_credit.teacher_entropy IS 'Entropy of the teacher''s distribution, nats.';
COMMENT ON COLUMN query_credit.student_entropy IS 'Entropy of the student''s distribution, nats.';
