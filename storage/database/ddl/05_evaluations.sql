CREATE TABLE evaluations (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    mode VARCHAR NOT NULL,
    dataset VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    updates_done INTEGER NOT NULL,
    policy_version INTEGER NOT NULL,
    num_questions INTEGER NOT NULL,
    em DOUBLE NOT NULL,
    f1 DOUBLE NOT NULL,
    search_quality DOUBLE NOT NULL,
    searches_per_rollout DOUBLE NOT NULL,
    valid_share DOUBLE NOT NULL,
    completion_tokens_mean DOUBLE NOT NULL,
    PRIMARY KEY (run, iteration, mode, dataset, split)
);
COMMENT ON TABLE evaluations IS 'One row an evaluation of a policy on a fixed sample of questions.';
COMMENT ON COLUMN evaluations.iteration IS 'Iteration of the run that evaluated.';
COMMENT ON COLUMN evaluations.updates_done IS 'Updates done before this evaluation.';

CREATE TABLE evaluation_answers (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    mode VARCHAR NOT NULL,
    dataset VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    question_key VARCHAR NOT NULL,
    question VARCHAR NOT NULL,
    golden_answers VARCHAR[] NOT NULL,
    category VARCHAR NOT NULL,
    answer VARCHAR,
    queries VARCHAR[] NOT NULL,
    em DOUBLE NOT NULL,
    f1 DOUBLE NOT NULL,
    valid_format BOOLEAN NOT NULL,
    num_hits INTEGER NOT NULL,
    num_golden_hits INTEGER NOT NULL,
    num_completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (run, iteration, mode, dataset, split, question_key)
);
COMMENT ON TABLE evaluation_answers IS 'One row a question of an evaluation.';
COMMENT ON COLUMN evaluation_answers.iteration IS 'Iteration of the run that evaluated.';
