"""The five questions of questions.sql, in Polars.

    python examples/study/questions.py RANKING DETAILS SCORES TRAIN LOSSES

Each word is the folder of a step's artifact, as `wherefrom path PIPELINE STEP` prints it.
"""

import sys

import polars as pl


def read(folder):
    return pl.scan_parquet(folder + "/*.parquet")


def questions(ranking, details, scores, train, losses):
    """Name and table of each answer."""
    ranking, details, scores, train, losses = map(read, (ranking, details, scores, train, losses))
    query, influence = pl.col("query"), pl.col("influence")
    positive = scores.filter(influence > 0)

    # 1. Which passage speaks most for each completion, and how much of what the completion costs would it take away?
    cost = losses.select(query=pl.col("example").cast(pl.UInt32), cost="loss")
    strongest = (ranking.filter(pl.col("sign") == "positive", pl.col("rank") == 1).join(cost, on="query")
                 .select("query", "doc", influence.round(3), of_cost=(influence / pl.col("cost")).round(2),
                         cost=pl.col("cost").round(2)).sort("query"))

    # 2. How concentrated is the positive influence: what does the strongest 1 % of the passages hold?
    few = (0.01 * pl.len()).ceil().cast(pl.UInt32)
    concentration = positive.group_by("query").agg(
        top_percent=(influence.cast(pl.Float64).sort(descending=True).head(few).sum() / influence.cast(pl.Float64).sum()).round(3),
        participation_ratio=(influence.cast(pl.Float64).sum() ** 2 / (influence.cast(pl.Float64) ** 2).sum()).round(1),
    ).sort("query")

    # 3. Which passages speak for several completions at once?
    shared = (ranking.filter(pl.col("sign") == "positive").group_by("doc")
              .agg(queries=pl.len(), which=query.sort(), influence=influence.cast(pl.Float64).sum().round(3))
              .filter(pl.col("queries") > 1).sort(["queries", "influence", "doc"], descending=[True, True, False]).head(10))

    # 4. Where does the influence of each query's proponents lie: what is the share of each module?
    modules = (details.filter(influence > 0)
               .select("query", share="by_module", module=pl.int_ranges(pl.col("by_module").list.len()))
               .explode("share", "module").group_by("query", "module").agg(pl.col("share").cast(pl.Float64).sum())
               .with_columns((pl.col("share") / pl.col("share").sum().over("query")).round(4))
               .sort(["query", "share", "module"], descending=[False, True, False]))

    # 5. Which influences rest on one or two tokens (|a|_2 / |a|_1 > 2/3), and on which?
    sizes = pl.col("by_token").list.eval(pl.element().cast(pl.Float64).abs())
    squares = pl.col("by_token").list.eval(pl.element().cast(pl.Float64) ** 2)
    few_tokens = (details.with_columns(ratio=squares.list.sum().sqrt() / sizes.list.sum(), token=sizes.list.arg_max())
                  .filter(pl.col("ratio") > 2 / 3).join(train.select("example", "docs"), on="example")
                  .sort(["ratio", "query", "example"], descending=[True, False, False])
                  .select("query", influence.round(3), "token", doc=pl.col("docs").list.first(), ratio=pl.col("ratio").round(3)).head(10))

    answers = {"strongest": strongest, "concentration": concentration, "shared": shared,
               "modules": modules, "few_tokens": few_tokens}
    return {name: answer.collect() for name, answer in answers.items()}


if __name__ == "__main__":
    for name, answer in questions(*sys.argv[1:]).items():
        print(name, answer, sep="\n")
