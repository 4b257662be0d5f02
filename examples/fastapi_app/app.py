"""The application. `?cache=false` reads the database, to compare; Server-Timing says what the read alone took."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, Response

from sqlmodel_cache.contrib.dashboard import cache_dashboard
from sqlmodel_cache.contrib.fastapi import cache_lifespan

from .database import AsyncDep, SyncDep, close, prepare
from .models import Hero, HeroBase, Team


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """What the application itself needs; the cache is configured around it."""
    prepare()
    yield
    await close()


# Without REDIS_URL the rows are kept in this process, which is right for one process.
app = FastAPI(title="Heroes", lifespan=cache_lifespan(lifespan, os.environ.get("REDIS_URL") or None, default_ttl=300))

# It can invalidate, for whoever can open it: an application on a network puts its own authentication around it.
app.mount("/cache", cache_dashboard(title="Heroes: cache", actions=True))


def options(cache: Annotated[bool, Query(description="false reads the database")] = True) -> dict[str, bool]:
    """Return what a get is told."""
    return {} if cache else {"cache": False}


OptionsDep = Annotated[dict[str, bool], Depends(options)]


def took(response: Response, began: float) -> None:
    """Tell the client how long a read took."""
    response.headers["Server-Timing"] = f"read;dur={(time.perf_counter() - began) * 1000:.3f}"


async def existing_hero(hero_id: int, session: AsyncDep, options: OptionsDep, response: Response) -> Hero:
    """Return the hero, from the cache or from the database."""
    began = time.perf_counter()
    hero = await session.get(Hero, hero_id, execution_options=options)
    took(response, began)
    if hero is None:
        raise HTTPException(404, "no such hero")
    return hero


HeroDep = Annotated[Hero, Depends(existing_hero)]


@app.post("/heroes", status_code=201)
async def create_hero(body: HeroBase, session: AsyncDep) -> Hero:
    """Insert a hero."""
    hero = Hero.model_validate(body)
    session.add(hero)
    await session.commit()
    await session.refresh(hero)
    return hero


@app.get("/heroes/{hero_id}")
async def read_hero(hero: HeroDep) -> Hero:
    """Return a hero."""
    return hero


@app.put("/heroes/{hero_id}")
async def change_hero(hero: HeroDep, body: HeroBase, session: AsyncDep) -> Hero:
    """Change a hero; every process reads the new row from the moment that this has answered."""
    hero.sqlmodel_update(body)
    await session.commit()
    await session.refresh(hero)
    return hero


@app.delete("/heroes/{hero_id}", status_code=204)
async def delete_hero(hero: HeroDep, session: AsyncDep) -> None:
    """Delete a hero."""
    await session.delete(hero)
    await session.commit()


@app.get("/heroes/{hero_id}/team")
def read_team_of_hero(hero_id: int, session: SyncDep) -> Team | None:
    """Return a hero's team: two rows, and both may come from the cache."""
    hero = session.get(Hero, hero_id)
    if hero is None:
        raise HTTPException(404, "no such hero")
    return hero.team


@app.get("/teams/{team_id}")
def read_team(team_id: int, session: SyncDep, options: OptionsDep, response: Response) -> Team:
    """Return a team."""
    began = time.perf_counter()
    team = session.get(Team, team_id, execution_options=options)
    took(response, began)
    if team is None:
        raise HTTPException(404, "no such team")
    return team


@app.put("/teams/{team_id}")
def rename_team(team_id: int, name: str, session: SyncDep) -> Team:
    """Rename a team."""
    team = session.get(Team, team_id)
    if team is None:
        raise HTTPException(404, "no such team")
    team.name = name
    session.commit()
    session.refresh(team)
    return team
