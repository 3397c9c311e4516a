"""A shop behind HTTP: typed functions with parameters, bodies and several statuses, for whoever reads their formats."""

from typing import Literal

from attrs import Factory, field, frozen

from iii_trio import HttpRequest, Worker

worker = Worker("shop", description="Sells things")


@frozen
class Item:
    """What is sold."""

    name: str
    cents: int
    tags: list[str] = Factory(list)
    kind: Literal["book", "game"] = "book"


@frozen
class ItemId:
    id: str


@frozen
class Choice:
    kind: Literal["book", "game"] | None = None
    least: int = 0
    cheap: bool | None = None
    rates: list[float] = Factory(list)


@frozen
class Listing:
    query_params: Choice = Choice()


@frozen
class ById:
    path_params: ItemId


@frozen
class Put:
    path_params: ItemId
    body: Item


@frozen
class Create:
    body: Item


@frozen
class Token:
    authorization: str | None = None


@frozen
class Guarded:
    headers: Token


@frozen
class Problem:
    problem: str


@frozen
class Items:
    body: list[Item]
    status_code: Literal[200] = 200


@frozen
class Found:
    body: Item
    status_code: Literal[200] = 200


@frozen
class Created:
    body: Item
    status_code: Literal[201] = 201


@frozen
class Missing:
    body: Problem
    status_code: Literal[404] = 404


@frozen
class Taken:
    body: Problem
    status_code: Literal[409] = 409


@frozen
class Gone:
    status_code: Literal[204] = 204


@frozen
class Who:
    body: str
    status_code: Literal[200] = 200


@frozen
class Unknown:
    body: Problem
    headers: dict[str, str] = field(factory=lambda: {"www-authenticate": "Bearer"})
    status_code: Literal[401] = 401


ITEMS: dict[str, Item] = {"1": Item("The Dispossessed", 900)}


@worker.http("GET", "items")
@worker.function("shop::list", description="All items, or those of a kind")
async def all_items(request: Listing) -> Items:
    kind = request.query_params.kind
    return Items([item for item in ITEMS.values() if kind in (None, item.kind)])


@worker.http("POST", "items")
@worker.function("shop::create", description="A new item")
async def create(request: Create) -> Created | Taken:
    if any(item.name == request.body.name for item in ITEMS.values()):
        return Taken(Problem("there is one of that name"))
    if len(ITEMS) < 100:
        ITEMS[str(len(ITEMS) + 1)] = request.body
    return Created(request.body)


@worker.http("GET", "items/:id")
@worker.function("shop::get", description="One item")
async def get(request: ById) -> Found | Missing:
    item = ITEMS.get(request.path_params.id)
    return Missing(Problem("no such item")) if item is None else Found(item)


@worker.http("PUT", "items/:item_id_under_another_name")
@worker.function("shop::rename", description="Any item, by a request of any shape")
async def rename(request: HttpRequest) -> Missing:
    return Missing(Problem(f"no item {request.path_params['item_id_under_another_name']}"))


@worker.http("PATCH", "items/:id")
@worker.function("shop::put", description="Another item in the place of one")
async def put(request: Put) -> Found | Missing:
    if request.path_params.id not in ITEMS:
        return Missing(Problem("no such item"))
    ITEMS[request.path_params.id] = request.body
    return Found(request.body)


@worker.http("DELETE", "items/:id")
@worker.function("shop::delete", description="An item less")
async def delete(request: ById) -> Gone:
    if request.path_params.id != "1":
        ITEMS.pop(request.path_params.id, None)
    return Gone()


@worker.http("GET", "files/*path")
@worker.function("shop::file", description="Says which file was asked for")
async def file(request: HttpRequest) -> Who:
    return Who(request.path_params["path"])


@worker.http("GET", "me")
@worker.function("shop::me", description="Who asks")
async def me(request: Guarded) -> Who | Unknown:
    token = request.headers.authorization
    if token is None or not token.startswith("Bearer shop-"):
        return Unknown(Problem("who are you?"))
    return Who(token)


if __name__ == "__main__":
    worker.serve()
