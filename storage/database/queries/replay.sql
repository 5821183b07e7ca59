-- What another teacher says of a run's queries, beside what its own said ($run: a replay).
SELECT run, iterations, figure, source, replay
FROM v_replays
WHERE run = $run
ORDER BY paired DESC, v_replays.place
