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
    contrast_text VARCHAR NOT NULL,
    contrast_token_ids INTEGER[] NOT NULL,
    PRIMARY KEY (run, iteration, block_index)
);
COMMENT ON TABLE hindsight_blocks IS 'One row a hindsight block: the text that the teacher sees and the student does not.';
COMMENT ON COLUMN hindsight_blocks.block_index IS 'Place of the block in the stage''s file, from 0.';
COMMENT ON COLUMN hindsight_blocks.num_attempts IS 'Attempts in the block.';

CREATE TABLE hindsight_attempts (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    block_index INTEGER NOT NULL,
    attempt_index INTEGER NOT NULL,
    group_id VARCHAR NOT NULL,
    rollout_index INTEGER NOT NULL,
    sampled_in INTEGER,
    label VARCHAR,
    contents VARCHAR[] NOT NULL,
    PRIMARY KEY (run, iteration, block_index, attempt_index)
);
COMMENT ON TABLE hindsight_attempts IS 'One row an attempt of a hindsight block.';
COMMENT ON COLUMN hindsight_attempts.block_index IS 'The block, as in hindsight_blocks.';
COMMENT ON COLUMN hindsight_attempts.attempt_index IS 'Place in the block, from 0.';
COMMENT ON COLUMN hindsight_attempts.group_id IS 'The block''s group.';

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
    gates DOUBLE[] NOT NULL,
    turn_leanings DOUBLE[] NOT NULL,
    PRIMARY KEY (run, iteration, rollout_id)
);
COMMENT ON TABLE teacher_targets IS 'One row a rollout: where the teacher''s distributions are.';
COMMENT ON COLUMN teacher_targets.tensor_path IS 'The safetensors file, below the workspace.';

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
    teacher_top STRUCT(token_id INTEGER, token VARCHAR, logprob DOUBLE)[] NOT NULL,
    student_top STRUCT(token_id INTEGER, token VARCHAR, logprob DOUBLE)[] NOT NULL,
    PRIMARY KEY (run, iteration, rollout_id, position)
);
COMMENT ON TABLE query_credit IS 'One row a distilled token (query tokens by default): what the teacher says of it.';
