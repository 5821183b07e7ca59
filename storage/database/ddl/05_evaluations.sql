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
    cover_em DOUBLE,
    further BOOLEAN NOT NULL,
    PRIMARY KEY (run, iteration, mode, dataset, split)
);
COMMENT ON TABLE evaluations IS 'One row an evaluation of a policy on a fixed sample of questions.';
COMMENT ON COLUMN evaluations.iteration IS 'Iteration of the run that evaluated.';
COMMENT ON COLUMN evaluations.updates_done IS 'Updates done before this evaluation.';

CREATE TABLE evaluation_conditions (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    mode VARCHAR NOT NULL,
    dataset VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    fingerprint VARCHAR NOT NULL,
    questions_sha256 VARCHAR NOT NULL,
    corpus VARCHAR NOT NULL,
    retriever VARCHAR NOT NULL,
    encoder VARCHAR NOT NULL,
    index_hash VARCHAR NOT NULL,
    num_passages INTEGER NOT NULL,
    protocol VARCHAR NOT NULL,
    limits VARCHAR NOT NULL,
    decoding VARCHAR NOT NULL,
    code_version VARCHAR NOT NULL,
    PRIMARY KEY (run, iteration, mode, dataset, split)
);
COMMENT ON TABLE evaluation_conditions IS 'What each evaluation was made under, a row a row of evaluations; none for those of earlier versions.';
COMMENT ON COLUMN evaluation_conditions.iteration IS 'Iteration of the run that evaluated.';
COMMENT ON COLUMN evaluation_conditions.fingerprint IS 'Hash of questions, index, number of passages, protocol, limits and decoding: results with the same one can be compared.';

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
    cover_em DOUBLE,
    valid_format BOOLEAN NOT NULL,
    num_hits INTEGER NOT NULL,
    num_golden_hits INTEGER NOT NULL,
    num_completion_tokens INTEGER NOT NULL,
    found VARCHAR[][] NOT NULL,
    PRIMARY KEY (run, iteration, mode, dataset, split, question_key)
);
COMMENT ON TABLE evaluation_answers IS 'One row a question of an evaluation.';
COMMENT ON COLUMN evaluation_answers.iteration IS 'Iteration of the run that evaluated.';

CREATE TABLE judged_evaluations (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    mode VARCHAR NOT NULL,
    dataset VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    prompt VARCHAR NOT NULL,
    num_questions INTEGER NOT NULL,
    judged_right DOUBLE NOT NULL,
    PRIMARY KEY (run, iteration, mode, dataset, split)
);
COMMENT ON TABLE judged_evaluations IS 'What a judge said of an evaluation, a row a row of evaluations that was judged (evaluation.judge).';
COMMENT ON COLUMN judged_evaluations.iteration IS 'Iteration of the run that evaluated.';

CREATE TABLE evaluation_verdicts (
    run VARCHAR NOT NULL,
    iteration INTEGER NOT NULL,
    mode VARCHAR NOT NULL,
    dataset VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    question_key VARCHAR NOT NULL,
    judged_right BOOLEAN NOT NULL,
    reply VARCHAR NOT NULL,
    asked_sha256 VARCHAR NOT NULL,
    PRIMARY KEY (run, iteration, mode, dataset, split, question_key)
);
COMMENT ON TABLE evaluation_verdicts IS 'One row an answer that was judged; evaluation_answers has the answer.';
COMMENT ON COLUMN evaluation_verdicts.iteration IS 'Iteration of the run that evaluated.';

CREATE VIEW v_evaluation_figures AS
SELECT
    run,
    iteration,
    mode,
    dataset,
    split,
    count(*) AS num_questions,
    avg(em) AS em,
    avg(f1) AS f1,
    avg(cover_em) AS cover_em,
    avg((num_golden_hits > 0)::INTEGER) AS found_share,
    avg(em) FILTER (num_golden_hits > 0) AS em_where_found,
    sum(num_golden_hits) / nullif(sum(num_hits), 0) AS search_quality,
    avg(len(queries)) AS searches_per_rollout
FROM evaluation_answers
GROUP BY run, iteration, mode, dataset, split;
COMMENT ON VIEW v_evaluation_figures IS 'Finding and reading apart, one row an evaluation: EM is found_share times em_where_found, but for what is answered without a passage.';
COMMENT ON COLUMN v_evaluation_figures.iteration IS 'Iteration of the run that evaluated.';
COMMENT ON COLUMN v_evaluation_figures.num_questions IS 'Questions.';
COMMENT ON COLUMN v_evaluation_figures.em IS 'Mean exact match.';
COMMENT ON COLUMN v_evaluation_figures.f1 IS 'Mean token F1.';
COMMENT ON COLUMN v_evaluation_figures.cover_em IS 'Share of answers that contain a golden one; empty in evaluations of earlier versions.';
COMMENT ON COLUMN v_evaluation_figures.found_share IS 'Share of questions for which a retrieved passage contains a golden answer.';
COMMENT ON COLUMN v_evaluation_figures.em_where_found IS 'Mean exact match of these questions (reading); empty where nothing was found.';
COMMENT ON COLUMN v_evaluation_figures.search_quality IS 'Share of retrieved passages that contain a golden answer; empty where none was retrieved.';
COMMENT ON COLUMN v_evaluation_figures.searches_per_rollout IS 'Mean number of searches.';
